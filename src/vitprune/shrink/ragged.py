"""Operators on tensors that pruning leaves without a rectangular shape, followed until their parts are rectangular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from vitprune.shrink import pieces
from vitprune.shrink.dynamic import view_sizes
from vitprune.shrink.literals import is_ragged
from vitprune.shrink.operators import VIEWS
from vitprune.shrink.pieces import Piece, Stack
from vitprune.shrink.signature import CannotEmit
from vitprune.shrink.writer import Writer
from vitprune.trace.capture import op_name
from vitprune.trace.marks import MARK
from vitprune.trace.value import Value

ALIKE = frozenset(["contiguous", "clone", "alias", "detach", MARK])


def begins(w: Writer, node: Node) -> bool:
    """Whether the node is a reshape of a rectangular tensor that is none any more."""
    value = w.keep.value(node.name)
    return op_name(node) in VIEWS and value is not None and is_ragged(w.keep, value)


def begin(w: Writer, node: Node) -> None:
    """Note such a reshape as a pick from its source."""
    source, out = node.args[0], w.keep.value(node.name)
    assert isinstance(source, Node) and out is not None
    value, expression = w.keep.value(source.name), w.tensor(source)
    assert value is not None
    piece, rest, origin = pieces.start(w.keep, expression, value, out.shape)
    if rest is not None:
        larger = w.grown(source, node)
        if larger is not None:
            larger = larger[0], tuple(larger[side][d] for side, d in origin)
        sizes = view_sizes(w.keep, w.sizes, expression, value, rest, larger)
        piece = replace(piece, base=w.say(f"{expression}.reshape({sizes})"))
    w.env[node.name] = piece


def follow(w: Writer, node: Node, known: Piece | Stack) -> None:
    """Note what an operator makes of it, as a tensor as soon as that is rectangular.

    Raises CannotEmit for operators that do more than move elements.
    """
    w.env[node.name] = _moved(w, node, known)
    settle(w, node)


def settle(w: Writer, node: Node) -> None:
    """Turn the node's piece into a tensor if it is rectangular."""
    w.env[node.name] = _settled(w, w.env[node.name], w.keep.value(node.name))


def _settled(w: Writer, piece: Any, value: Value | None) -> Any:
    if not isinstance(piece, Piece) or value is None or is_ragged(w.keep, value):
        return piece
    sizes = [s or 0 for s in w.keep.shape(value)]
    return w.say(pieces.materialise(piece, sizes, w.constants))


def _moved(w: Writer, node: Node, piece: Piece | Stack) -> Any:
    name = op_name(node)
    if name in ALIKE:
        return piece
    if isinstance(piece, Stack):
        return _stack(w, node, piece)
    source = node.args[0]
    assert isinstance(source, Node)
    rank = len(piece.axes)
    if name in ("permute", "transpose"):
        return pieces.permuted(piece, _order(node, rank))
    if name in VIEWS:
        before, after = w.keep.value(source.name), w.keep.value(node.name)
        if before is None or after is None:
            raise CannotEmit("a reshape of one of several results")
        try:
            return pieces.reshaped(piece, before.shape, after.shape)
        except CannotEmit:
            axis = pieces.stackable(w.keep, piece, before)
            if axis is None:
                raise
            return _stack(w, node, _stacked(w, piece, before, axis))
    if name in ("chunk", "split", "split_with_sizes"):
        dim = _int(node, 2)
        out, begin_at = [], 0
        for k, part in enumerate(w.keep.graph.detail.propagated.values[node.name]):
            size = part.shape[dim % rank]
            cut = pieces.sliced(piece, dim, slice(begin_at, begin_at + size))
            out.append(_settled(w, cut, w.keep.value(node.name, k)))
            begin_at += size
        return out
    dim = _int(node, 1)
    if name == "select":
        return pieces.picked(piece, dim, _int(node, 2))
    if name != "unbind":
        raise CannotEmit(f"unequal parts read by {name}")
    kind, j = piece.axes[dim % rank]
    count = piece.ids.shape[j] if kind == "part" else 0
    return [_settled(w, pieces.picked(piece, dim, k), w.keep.value(node.name, k)) for k in range(count)]


def _int(node: Node, position: int) -> int:
    value = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    assert isinstance(value, int)
    return value


def _order(node: Node, rank: int) -> list[int]:
    """The order of axes that a permute or transpose makes."""
    if op_name(node) == "permute":
        order = node.args[1]
        assert isinstance(order, (list, tuple))
        return [int(o) % rank for o in order]  # type: ignore[arg-type]
    swapped = list(range(rank))
    a, b = _int(node, 1) % rank, _int(node, 2) % rank
    swapped[a], swapped[b] = swapped[b], swapped[a]
    return swapped


def _stacked(w: Writer, piece: Piece, value: Value, axis: int) -> Stack:
    values = tuple(pieces.slice_value(value, axis, k) for k in range(value.shape[axis]))
    parts = tuple(_settled(w, pieces.picked(piece, axis, k), v) for k, v in enumerate(values))
    return Stack(axis, parts, values)


def _stack(w: Writer, node: Node, stack: Stack) -> Any:
    """An operator on a tensor whose slices along one axis are kept apart."""
    source, name = node.args[0], op_name(node)
    assert isinstance(source, Node)
    before, after = w.keep.value(source.name), w.keep.value(node.name)
    if before is not None and name in ("select", "unbind") and _int(node, 1) % len(before.shape) == stack.axis:
        return list(stack.parts) if name == "unbind" else stack.parts[_int(node, 2)]
    if before is None or after is None or name not in {"permute", "transpose", *VIEWS}:
        raise CannotEmit(f"unequal parts read by {name}")
    axis, order, larger = -1, [0], None
    if name in VIEWS:
        axis = pieces.stack_axis_after(stack.axis, before.shape, after.shape)
        larger = w.grown(source, node)
        if larger is not None:
            larger = _without(larger[0], stack.axis), _without(larger[1], axis)
    else:
        axis, order = pieces.stack_permuted(_order(node, len(before.shape)), stack.axis)
    values = tuple(pieces.slice_value(after, axis, k) for k in range(after.shape[axis]))
    parts = []
    for part, old, new in zip(stack.parts, stack.values, values, strict=True):
        if name in VIEWS:
            parts.append(w.say(f"{part}.reshape({view_sizes(w.keep, w.sizes, part, old, new, larger)})"))
        else:
            parts.append(w.say(f"{part}.permute({order})"))
    return Stack(axis, tuple(parts), values)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return tuple(n for d, n in enumerate(shape) if d != axis)
