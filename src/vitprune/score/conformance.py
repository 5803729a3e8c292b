"""What every score must satisfy; a third-party score inherits it by calling `check_method` in its tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprune.score.types import Method, ScoreInputs
from vitprune.trace.graph import Graph


def check_method(
    method: Method, graph: Graph, model: nn.Module, seed: int = 0, batches: Iterable[Any] | None = None
) -> None:
    """Pass when `method` keeps the contract of a score on this model.

    It gives float64 (lanes, size) for every group and for nothing else, finite, the same under the same seed whatever
    the global generators hold, and leaves parameters, buffers, gradients, training mode and hooks as they were.

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
