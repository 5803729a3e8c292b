"""What every score must satisfy; a third-party score inherits it by calling `check_method` in its tests."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprune.arrays import Scores
from vitprune.score.types import Method, ScoreInputs
from vitprune.trace.graph import Graph
from vitprune.trace.permute import permute_


def check_method(
    method: Method, graph: Graph, model: nn.Module, seed: int = 0, batches: Iterable[Any] | None = None
) -> None:
    """Pass when `method` keeps the contract of a score on this model.

    It gives float64 (lanes, size) for every group and for nothing else, finite, the same under the same seed whatever
    the global generators hold, and leaves parameters, buffers, gradients, training mode and hooks as they were.

    When units change places (in a copy of the model: the same function) their scores change places with them, unless
    `info.follows` is off. With `info.unscaled` they stay when a head's v dims are made larger and read smaller.

    Raises AssertionError naming the rule and the group.
    """
    name = method.info.name
    assert name and method.info.summary, "a score needs a name and a one-line summary"
    assert set(method.info.needs) <= {"data", "labels", "gradients"}, f"{name}: unknown needs {method.info.needs}"
    data = None if batches is None else list(batches)
    before = {key: value.detach().clone() for key, value in model.state_dict(keep_vars=True).items()}
    grads = {key: None if p.grad is None else p.grad.clone() for key, p in model.named_parameters()}
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    requires = [p.requires_grad for p in model.parameters()]
    first = method.compute(ScoreInputs(graph, model, seed, data))
    torch.rand(3)  # the second run starts from other generator states
    np.random.random(3)
    second = method.compute(ScoreInputs(graph, model, seed, data))
    assert set(first) == {g.name for g in graph.groups}, f"{name}: must score every group and nothing else"
    for group in graph.groups:
        values = first[group.name]
        assert values.shape == (group.lanes, group.size), f"{name}: {group.name} has shape {values.shape}"
        assert values.dtype == np.float64, f"{name}: {group.name} is {values.dtype}, must be float64"
        assert np.isfinite(values).all(), f"{name}: {group.name} is not finite"
        assert np.array_equal(values, second[group.name]), f"{name}: {group.name} differs under the same seed"
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys(), f"{name}: the model's tensors changed"
    for key, value in before.items():
        assert torch.equal(value, after[key].detach()), f"{name}: changed {key}"
    for key, p in model.named_parameters():
        was = grads[key]
        same = p.grad is None if was is None else p.grad is not None and torch.equal(was, p.grad)
        assert same, f"{name}: left another gradient on {key}"
    assert flags == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()], (
        f"{name}: left hooks or another training mode behind"
    )
    assert requires == [p.requires_grad for p in model.parameters()], f"{name}: changed requires_grad"
    if method.info.follows:
        _check_follows(method, graph, model, seed, data, first)
    if method.info.unscaled:
        _check_unscaled(method, graph, model, seed, data, first)


def _check_follows(method: Method, graph: Graph, model: nn.Module, seed: int, data: Any, before: Scores) -> None:
    """One group of every kind: its units permuted, lane by lane."""
    rng = np.random.default_rng(seed)
    for group in {g.kind: g for g in graph.groups if g.members and g.exact}.values():
        order = np.stack([rng.permutation(group.size) for _ in range(group.lanes)])
        other = copy.deepcopy(model)
        permute_(group, order, _tensors(other))
        got = method.compute(ScoreInputs(graph, other, seed, data))[group.name]
        want = np.take_along_axis(before[group.name], order, axis=1)
        assert np.allclose(got, want, rtol=1e-2, atol=1e-4 * np.abs(want).max()), (
            f"{method.info.name}: the scores of {group.name} do not follow its units"
        )


def _check_unscaled(method: Method, graph: Graph, model: nn.Module, seed: int, data: Any, before: Scores) -> None:
    """The first unit of every group of value dims between two linear layers, all at once: the function stays."""
    groups = [g for g in graph.groups if g.kind == "v" and {m.dim for m in g.members} == {0, 1}]
    if not groups:
        return
    other = copy.deepcopy(model)
    tensors = _tensors(other)
    with torch.no_grad():
        for member in (m for g in groups for m in g.members):
            tensor, at = tensors[member.tensor], torch.as_tensor(member.index[:, 0].reshape(-1))
            part = tensor.index_select(member.dim, at.to(tensor.device))
            tensor.index_copy_(member.dim, at.to(tensor.device), part * (0.125 if member.dim else 8.0))
    scores = method.compute(ScoreInputs(graph, other, seed, data))
    for group in groups:
        got, want = scores[group.name], before[group.name]
        assert np.allclose(got, want, rtol=1e-2, atol=1e-4 * np.abs(want).max()), (
            f"{method.info.name}: the scores of {group.name} change with a scale that its reader undoes"
        )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
