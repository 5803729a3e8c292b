"""From a module and an example to its graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitprune.errors import ModelError
from vitprune.trace.blocks import Branch, branch_of, find_branches
from vitprune.trace.capture import Captured, capture
from vitprune.trace.costs import AxisPolynomials, op_costs, parameter_count
from vitprune.trace.graph import Graph, Group
from vitprune.trace.groups import Units, build_cosize, build_frozen, build_groups
from vitprune.trace.labels import Solved, solve
from vitprune.trace.names import block_key, rank_blocks
from vitprune.trace.polynomial import Polynomial
from vitprune.trace.propagate import Propagated, propagate


@dataclass(frozen=True, slots=True, eq=False)
class Detail:
    """What the engine itself needs later: the operators, every tensor's labels, and their classes."""

    captured: Captured
    propagated: Propagated
    solved: Solved
    units: Units


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Graph:
    """The groups, costs and limits of `model`, from one example.

    args, kwargs: what the model is called with, batch 2 or more in the first axis of the first tensor. Meta tensors
    work (on a model on the meta device).

    Raises ModelError if the model cannot be captured, or the batch is below 2.
    """
    tensors = [a for a in [*args, *dict(kwargs or {}).values()] if isinstance(a, torch.Tensor)]
    if not tensors or tensors[0].shape[0] < 2:
        given = tuple(tensors[0].shape) if tensors else "no tensor"
        raise ModelError(f"the example must be a batch of at least 2, but got {given}. Give two images (any values).")
    batch = int(tensors[0].shape[0])
    captured = capture(model, args, kwargs)
    propagated = propagate(captured, frozenset(int(t.shape[0]) for t in tensors if t.ndim and t.shape[0] > 1))
    solved = solve(propagated.walk.labels)
    units = build_groups(propagated, solved)
    branches = {f"{b.largest}:block": b for b in find_branches(model, captured, propagated)}
    sizes = AxisPolynomials(solved, units)
    costs = op_costs(propagated, sizes, batch, branch_of(branches))
    captured_name = {
        id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in propagated.tensors
    }
    shapes = {captured_name.get(id(p), name): tuple(p.shape) for name, p in model.named_parameters()}
    return Graph(
        groups=units.groups + _block_groups(branches),
        frozen=build_frozen(propagated, solved, units),
        op_costs=costs,
        macs=Polynomial.total(c.macs for c in costs),
        params=parameter_count(propagated, sizes, shapes, {m: name for name, b in branches.items() for m in b.modules}),
        cosize=build_cosize(propagated, solved, units),
        unknown_ops=tuple(f"{op} (in {module or 'the model'})" for op, module in propagated.walk.unknown.items()),
        batch=batch,
        fingerprint=_fingerprint(units, shapes),
        detail=Detail(captured, propagated, solved, units),
    )


def _block_groups(branches: Mapping[str, Branch]) -> tuple[Group, ...]:
    keys = rank_blocks([block_key(b.largest) for b in branches.values()])
    return tuple(
        Group(name, "block", 1, 1, None, (), b.largest, keys.get(block_key(b.largest) or ""), modules=b.modules)
        for name, b in branches.items()
    )


def _fingerprint(units: Units, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A short digest of the parameters' shapes and the groups, equal for models that prune alike."""
    digest = hashlib.sha256()
    for name, shape in sorted(shapes.items()):
        digest.update(f"{name}{shape};".encode())
    for g in units.groups:
        digest.update(f"{g.name},{g.kind},{g.size},{g.lanes};".encode())
    return digest.hexdigest()[:16]
