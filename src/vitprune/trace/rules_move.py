"""Rules of the operators that move elements: reshapes, picks, joins, repeats, look-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitprune.trace import moves
from vitprune.trace.elementwise import repeat_axis
from vitprune.trace.value import Field, Value
from vitprune.trace.walk import Walk


def reshape(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """view, reshape, flatten, unflatten, squeeze of several axes: the result's shape says all."""
    return moves.view(w.labels, x, w.shape)


def permute(w: Walk, x: Value, order: Sequence[int]) -> Value:
    """Axes reordered."""
    return moves.permute(x, order)


def transpose(w: Walk, x: Value, a: int = 0, b: int = 1) -> Value:
    """Two axes exchanged (t() on a matrix)."""
    nd = len(x.shape)
    if nd < 2:
        return x
    order = list(range(nd))
    order[a % nd], order[b % nd] = order[b % nd], order[a % nd]
    return moves.permute(x, order)


def reverse_axes(w: Walk, x: Value) -> Value:
    """x.T."""
    return moves.permute(x, list(range(len(x.shape)))[::-1])


def movedim(w: Walk, x: Value, source: Any, target: Any) -> Value:
    """Axes moved to new places."""
    nd = len(x.shape)
    src = [s % nd for s in (source if isinstance(source, (list, tuple)) else [source])]
    dst = [t % nd for t in (target if isinstance(target, (list, tuple)) else [target])]
    rest = iter(d for d in range(nd) if d not in src)
    place = dict(zip(dst, src, strict=True))
    return moves.permute(x, [place[d] if d in place else next(rest) for d in range(nd)])


def unsqueeze(w: Walk, x: Value, dim: int) -> Value:
    """A new axis of size 1."""
    return moves.insert_dim(x, dim)


def expand(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """Broadcast to the result's shape."""
    x = moves.lift(x, len(w.shape))
    shape = (w.shape[0], *x.shape[1:]) if w.shape and w.shape[0] in w.batches and x.shape[0] == 1 else x.shape
    # copies along the batch get no labels: the batch is no axis of the model
    return batched(w, moves.expand(w.labels, replace(x, shape=shape), w.shape))


def batched(w: Walk, x: Value) -> Value:
    """The value, counted as one per image if its first axis has the size of the batch."""
    return replace(x, depends=x.depends or (bool(x.shape) and x.shape[0] in w.batches))


def im2col(w: Walk, x: Value, kernel: Sequence[int], *_: Any) -> Value:
    """Patches (batch, channels x kernel, places) of an image (batch, channels, height, width)."""
    return replace(Value(w.shape, (), x.depends), fields=_spread(w, x, int(np.prod(kernel))))


def _spread(w: Walk, x: Value, times: int) -> tuple[Field, ...]:
    for f in x.fields:
        if f.dim > 1:
            w.labels.freeze(f.array, "cut into patches")
    nd = len(w.shape)
    lines = [np.repeat(f.array.take([0], axis=0).ravel(), times) for f in x.on(1)]
    return tuple(Field(line.reshape((1, -1) + (1,) * (nd - 2)), 1) for line in lines)


def col2im(w: Walk, x: Value, _: Any, kernel: Sequence[int], *__: Any) -> Value:
    """The sum of overlapping patches: the inverse of im2col."""
    times = int(np.prod(kernel))
    lines = []
    for f in x.on(1):
        block = f.array.ravel().reshape(-1, times)
        for k in range(1, times):
            w.labels.unify(block[:, 0], block[:, k])
        lines.append(block[:, 0])
    nd = len(w.shape)
    return Value(w.shape, tuple(Field(line.reshape((1, -1) + (1,) * (nd - 2)), 1) for line in lines), x.depends)


def select(w: Walk, x: Value, dim: int, index: int) -> Value:
    """One position of an axis."""
    return moves.drop_dim(w.labels, x, dim, index % x.shape[dim % len(x.shape)])


def unbind(w: Walk, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """Every position of an axis, apart."""
    return tuple(moves.drop_dim(w.labels, x, dim, i) for i in range(x.shape[dim % len(x.shape)]))


def slice_(w: Walk, x: Value, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Value:
    """x[start:stop:step] along one axis."""
    return moves.take(w.labels, x, dim, slice(start, stop, step))


def narrow(w: Walk, x: Value, dim: int, start: int, length: int) -> Value:
    """`length` positions from `start`."""
    return moves.take(w.labels, x, dim, slice(start, start + length))


def split(w: Walk, x: Value, _: Any, dim: int = 0, *__: Any) -> tuple[Value, ...]:
    """split, split_with_sizes and chunk: consecutive runs, as long as the results are."""
    dim %= len(x.shape)
    parts, start = [], 0
    for shape in w.shapes:
        parts.append(moves.take(w.labels, x, dim, slice(start, start + shape[dim])))
        start += shape[dim]
    return tuple(parts)


def cat(w: Walk, values: Sequence[Value], dim: int = 0) -> Value:
    """Tensors joined along an axis."""
    return moves.cat(w.labels, values, dim)


def stack(w: Walk, values: Sequence[Value], dim: int = 0) -> Value:
    """Tensors joined along a new axis."""
    return moves.cat(w.labels, [moves.insert_dim(v, dim) for v in values], dim)


def repeat(w: Walk, x: Value, times: Sequence[int]) -> Value:
    """Tiled copies along every axis."""
    x = moves.lift(x, len(w.shape))
    for d, n in enumerate((1,) * (len(w.shape) - len(times)) + tuple(times)):
        if n > 1 and d == 0 and x.shape[0] == 1 and n in w.batches:
            x = replace(x, shape=(n, *x.shape[1:]))
        elif n > 1:
            x = repeat_axis(w.labels, x, d, n, interleave=False)
    return batched(w, x)


def repeat_interleave(w: Walk, x: Value, times: Any, dim: int | None = None, *_: Any, **__: Any) -> Value:
    """Every position repeated in place."""
    if dim is None or not isinstance(times, int):
        for f in x.fields:
            w.labels.freeze(f.array, "repeated by a tensor of counts")
        return Value(w.shape, (), x.depends)
    return batched(w, repeat_axis(w.labels, x, dim, times, interleave=True))


def flip(w: Walk, x: Value, dims: Sequence[int]) -> Value:
    """Axes reversed."""
    fields = []
    for f in x.fields:
        array = f.array
        for d in dims:
            array = np.flip(array, d % len(x.shape))
        fields.append(Field(array, f.dim))
    return replace(x, fields=tuple(fields))


def meshgrid(w: Walk, values: Sequence[Value], *_: Any, **__: Any) -> tuple[Value, ...]:
    """Coordinate grids of constants."""
    for v in values:
        for f in v.fields:
            w.labels.freeze(f.array, "coordinates")
    return tuple(Value(s, (), any(v.depends for v in values)) for s in w.shapes)


def embedding(w: Walk, table: Value, index: Value, *_: Any, **__: Any) -> Value:
    """Rows of a table; the row axis is frozen."""
    for f in table.on(0):
        w.labels.freeze(f.array, "rows of a look-up table")
    rank = len(w.shape)
    fields = [Field(f.array.take([0], axis=0).reshape((1,) * (rank - 1) + (-1,)), rank - 1) for f in table.on(1)]
    return Value(w.shape, tuple(fields), table.depends or index.depends)


def index(w: Walk, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[i, j, ...] with tensors of indices: indexed axes are frozen, the others keep their labels."""
    used = [d for d, i in enumerate(indices) if i is not None]
    for d in used:
        for f in x.on(d):
            w.labels.freeze(f.array, "rows of a look-up table")
    adjacent = used == list(range(used[0], used[-1] + 1))
    width = len(w.shape) - (len(x.shape) - len(used))
    at = used[0] if adjacent else 0
    rest = [d for d in range(len(x.shape)) if d not in used]
    fields = []
    for f in x.fields:
        if f.dim in used:
            continue
        array = f.array
        for d in used:
            if array.shape[d] > 1:
                array = array.take([0], axis=d)
        array = array.squeeze(tuple(used))
        array = array.reshape(array.shape[:at] + (1,) * width + array.shape[at:])
        place = rest.index(f.dim)
        fields.append(Field(array, place if place < at else place + width))
    return Value(w.shape, tuple(fields), x.depends or any(i.depends for i in indices if i is not None))


def index_select(w: Walk, x: Value, dim: int, positions: Value) -> Value:
    """x[..., i, ...] along one axis."""
    return index(w, x, [None] * (dim % len(x.shape)) + [positions])


def gather(w: Walk, x: Value, dim: int, positions: Value, *_: Any, **__: Any) -> Value:
    """Picks along one axis, which is frozen; the others keep their labels."""
    dim %= len(x.shape)
    for f in x.on(dim):
        w.labels.freeze(f.array, "gathered by index")
    for d in range(len(x.shape)):
        if d != dim and x.shape[d] == positions.shape[d] > 1:
            moves.join(w.labels, x.on(d), positions.on(d), "gathered by index")
    fields = []
    for f in x.fields:
        if f.dim != dim:
            fields.append(Field(f.array.take([0], axis=dim) if f.array.shape[dim] > 1 else f.array, f.dim))
    return Value(w.shape, tuple(fields), True)
