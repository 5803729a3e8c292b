"""The literal arguments of an operator after pruning: view sizes, split sizes, slice bounds, groups, scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from vitprune.shrink.keep import Keep
from vitprune.trace.capture import op_name
from vitprune.trace.value import Value

SIZED = frozenset(
    ["view", "reshape", "_unsafe_view", "expand", "broadcast_to", "new_zeros", "new_ones", "new_empty", "new_full"]
)
CREATED = frozenset(["zeros", "ones", "empty", "full"])
SPLITS = frozenset(["split", "split_with_sizes", "chunk", "tensor_split"])


class Ragged(Exception):
    """A tensor that would not be rectangular any more."""


@dataclass(frozen=True, slots=True)
class Literal:
    """One argument of one operator that has to change."""

    position: int | str  # of the argument: a number, or a keyword's name
    old: Any
    new: Any


def _input(keep: Keep, node: Node, position: int = 0) -> Value | None:
    source = node.args[position] if len(node.args) > position else None
    return node_value(keep, source) if isinstance(source, Node) else None


def node_value(keep: Keep, node: Node) -> Value | None:
    """The traced value of a node; for a getitem that of the part it picks."""
    return keep.value(node.name)


def _sizes(keep: Keep, value: Value) -> list[int]:
    shape = keep.shape(value)
    if any(s is None for s in shape):
        raise Ragged
    return [int(s) for s in shape if s is not None]


def _sized(keep: Keep, node: Node, position: int) -> list[Literal]:
    value = keep.value(node.name)
    old = list(node.args[position])  # type: ignore[arg-type]
    if value is None or any(not isinstance(o, int) for o in old):
        return []
    new = [o if o == -1 else n for o, n in zip(old, _sizes(keep, value), strict=True)]
    return [Literal(position, old, new)] if new != old else []


def _norm(keep: Keep, node: Node) -> list[Literal]:
    value = _input(keep, node)
    old = list(node.args[1])  # type: ignore[arg-type]
    if value is None:
        return []
    new = _sizes(keep, value)[-len(old) :]
    return [Literal(1, old, new)] if new != old else []


def _split(keep: Keep, node: Node) -> list[Literal]:
    parts = keep.graph.detail.propagated.values.get(node.name)
    if not isinstance(parts, tuple) or not parts:
        return []
    dim = int(node.args[2]) if len(node.args) > 2 else int(node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    dim %= len(parts[0].shape)
    old = [p.shape[dim] for p in parts]
    new = [_sizes(keep, p)[dim] for p in parts]
    if new == old:
        return []
    given = node.args[1]
    if op_name(node) in ("chunk", "tensor_split") and len(set(new)) == 1:
        return []
    if op_name(node) == "split" and isinstance(given, int) and len(set(new)) == 1:
        return [Literal(1, given, new[0])]
    return [Literal(1, given, new)]


def _slice(keep: Keep, node: Node) -> list[Literal]:
    value = _input(keep, node)
    if value is None:
        return []
    args: list[Any] = [*node.args, *[0, None, None][len(node.args) - 1 :]]
    dim = int(args[1]) % len(value.shape)
    mask = keep.mask(value, dim)
    if mask is None:
        return []
    size = value.shape[dim]
    out = []
    line = np.moveaxis(np.broadcast_to(mask, [size if d == dim else n for d, n in enumerate(mask.shape)]), dim, -1)
    step = int(args[4]) if len(args) > 4 and isinstance(args[4], int) else 1
    rows = line.reshape(-1, size)
    rows = rows[rows.any(axis=1)]  # positions of the other axes that go altogether do not count
    for position in (2, 3):
        bound = args[position]
        if bound is None or not isinstance(bound, int) or bound > size or (position == 2 and bound == 0):
            continue
        offset = bound % step if position == 2 else 0  # whole runs of `step` positions go together
        counts = np.unique(rows[:, : (bound if bound >= 0 else size + bound) - offset].sum(axis=1)) + offset
        if len(counts) != 1:
            raise Ragged
        new = int(counts[0])
        if bound < 0:
            new = new - int(rows[0].sum())
            if new == 0:
                new = size
        if new != bound:
            out.append(Literal(position, bound, new))
    return out


def _repeat(keep: Keep, node: Node) -> list[Literal]:
    out, value = keep.value(node.name), _input(keep, node)
    if value is None or out is None:
        return []
    counts: Any = node.args[1]
    old = [int(t) for t in counts]
    after, before = _sizes(keep, out), _sizes(keep, value)
    before = [1] * (len(after) - len(before)) + before
    new = [a // b for a, b in zip(after, before, strict=True)][-len(old) :]
    return [Literal(1, old, new)] if new != old else []


def _groups(keep: Keep, node: Node) -> list[Literal]:
    weight, x = _input(keep, node, 1), _input(keep, node)
    groups = int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
    if groups == 1 or weight is None or x is None or weight.shape[1] != 1:
        return []
    new = _sizes(keep, x)[1]
    return [Literal(6, groups, new)] if new != groups else []


def _scale(keep: Keep, node: Node) -> list[Literal]:
    value = _input(keep, node)
    if value is None or node.kwargs.get("scale") is not None:
        return []
    new = keep.size(value, -1)
    if new is None:
        raise Ragged
    return [Literal("scale", None, 1 / math.sqrt(value.shape[-1]))] if new != value.shape[-1] else []


def literals(keep: Keep, node: Node) -> list[Literal]:
    """The arguments of `node` that have to change under the plan.

    Raises Ragged if a tensor that the operator makes would not be rectangular.
    """
    name = op_name(node)
    if node.op != "call_function":
        return []
    if name in SIZED:
        return _sized(keep, node, 1)
    if name in CREATED:
        return _sized(keep, node, 0)
    if name == "unflatten":
        return _unflatten(keep, node)
    if name in ("layer_norm", "rms_norm"):
        return _norm(keep, node)
    if name in SPLITS:
        return _split(keep, node)
    if name == "slice":
        return _slice(keep, node)
    if name in ("repeat", "tile"):
        return _repeat(keep, node)
    if name in ("conv1d", "conv2d", "conv3d"):
        return _groups(keep, node)
    if name == "scaled_dot_product_attention":
        return _scale(keep, node)
    return []


def _unflatten(keep: Keep, node: Node) -> list[Literal]:
    value = keep.value(node.name)
    if value is None:
        return []
    dim, old = int(node.args[1]), list(node.args[2])  # type: ignore[arg-type]
    rank = len(value.shape) - len(old) + 1
    start = dim % rank
    new = [o if o == -1 else n for o, n in zip(old, _sizes(keep, value)[start : start + len(old)], strict=True)]
    return [Literal(2, old, new)] if new != old else []


def is_ragged(keep: Keep, value: Value) -> bool:
    """Whether the tensor would not be rectangular any more."""
    return any(s is None for s in keep.shape(value))
