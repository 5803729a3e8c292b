"""Operators that only move elements: the labels are moved by the same operation, literally."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitprune.trace.labels import NONE, Array, Labels
from vitprune.trace.value import Field, Value, sort_fields, squeeze_constant


def permute(value: Value, order: Sequence[int]) -> Value:
    """Axes reordered; output axis i is input axis order[i]."""
    order = [o % len(value.shape) for o in order]
    fields = [Field(f.array.transpose(order), order.index(f.dim)) for f in value.fields]
    return replace(value, shape=tuple(value.shape[o] for o in order)).with_fields(fields)


def view_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairing of consecutive old dims with consecutive new dims of the same number of elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [], []
        pa = pb = 1
        if i < len(old):
            a.append(i)
            pa = old[i]
            i += 1
        if j < len(new) and (not a or pa != 1 or new[j] == 1):
            b.append(j)
            pb = new[j]
            j += 1
        while pa != pb:
            if pa < pb:
                a.append(i)
                pa *= old[i]
                i += 1
            else:
                b.append(j)
                pb *= new[j]
                j += 1
        blocks.append((a, b))
    return blocks


def view(labels: Labels, value: Value, shape: Sequence[int]) -> Value:
    """The tensor reshaped to `shape` (no -1).

    An axis that is split gets fresh labels on its outer parts (a head), which cover the labels of the inner part
    (the head's dims).
    """
    shape = tuple(shape)
    if shape == value.shape:
        return value
    if 0 in shape or 0 in value.shape:
        return Value(shape, (), value.depends)
    split = [n for a, b in view_blocks(value.shape, shape) for n in refined(value.shape, shape, a, b)]
    return _view(labels, _view(labels, value, tuple(split)), shape)


def refined(old: Sequence[int], new: Sequence[int], a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Sizes that refine both sides of a block: splitting first, merging after; the new sizes where none do."""
    edges = {1}
    for sizes, dims in ((old, a), (new, b)):
        product = 1
        for d in reversed(dims):
            product *= sizes[d]
            edges.add(product)
    steps = sorted(edges)
    if any(y % x for x, y in itertools.pairwise(steps)):
        return [new[d] for d in b]
    return [y // x for x, y in itertools.pairwise(steps)][::-1] or [1]


def _view(labels: Labels, value: Value, shape: tuple[int, ...]) -> Value:
    if shape == value.shape:
        return value
    fields = list(value.fields)
    blocks = view_blocks(value.shape, shape)
    arrays = [f.array for f in fields]
    dims = [f.dim for f in fields]
    moved: list[Array] = []
    new_dims: list[int] = []
    for array, dim in zip(arrays, dims, strict=True):
        target: list[int] = []
        out_dim = -1
        source: list[int] = []
        for a, b in blocks:
            sizes = [array.shape[k] for k in a]
            if all(s == 1 for s in sizes):
                target += [1] * len(b)
                source += sizes
            else:
                target += [shape[k] for k in b]
                source += [value.shape[k] for k in a]
        full = np.broadcast_to(array, source).reshape(target)
        full = squeeze_constant(full)
        for a, b in blocks:
            if dim in a:
                varying = [k for k in b if full.shape[k] > 1]
                out_dim = varying[-1] if varying else (b[-1] if b else -1)
        moved.append(full)
        new_dims.append(out_dim)
    out = [Field(m, d) for m, d in zip(moved, new_dims, strict=True) if d >= 0]
    extra: list[Field] = []
    for _, b in blocks:
        if len(b) < 2:
            continue
        for f in [f for f in out if f.dim in b]:
            for k in b:
                if k >= f.dim or f.array.shape[k] == 1:
                    continue
                if any(g.dim == k for g in [*out, *extra]):
                    continue
                slab_shape = [n if d <= k else 1 for d, n in enumerate(f.array.shape)]
                slab = labels.new(int(np.prod(slab_shape))).reshape(slab_shape)
                for g in [*out, *extra]:
                    if g.dim in b and g.array.shape[k] > 1:
                        labels.cover(slab, g.array)
                extra.append(Field(slab, k))
    return Value(shape, tuple(sort_fields([*out, *extra])), value.depends, value.attention, value.names)


def lift(value: Value, rank: int) -> Value:
    """The tensor with axes of size 1 in front, `rank` axes in all."""
    lead = rank - len(value.shape)
    if lead == 0:
        return value
    fields = [Field(f.array.reshape((1,) * lead + f.array.shape), f.dim + lead) for f in value.fields]
    return replace(value, shape=(1,) * lead + value.shape).with_fields(fields)


def fresh_axes(labels: Labels, value: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
    """The tensor copied along `dims` to the sizes in `shape`: equal copies, which take the labels they meet."""
    fields = list(value.fields)
    for d in dims:
        fields.append(Field(labels.new(shape[d]).reshape(tuple(-1 if k == d else 1 for k in range(len(shape)))), d))
    return replace(value, shape=tuple(shape)).with_fields(fields)


def expand(labels: Labels, value: Value, shape: Sequence[int]) -> Value:
    """Broadcast to `shape`; new axes stand in front."""
    value = lift(value, len(shape))
    return fresh_axes(labels, value, shape, [d for d, n in enumerate(shape) if n > 1 and value.shape[d] == 1])


def insert_dim(value: Value, dim: int) -> Value:
    """A new axis of size 1 at `dim`."""
    dim %= len(value.shape) + 1
    fields = [Field(np.expand_dims(f.array, dim), f.dim + (f.dim >= dim)) for f in value.fields]
    shape = (*value.shape[:dim], 1, *value.shape[dim:])
    return replace(value, shape=shape).with_fields(fields)


def take(labels: Labels, value: Value, dim: int, index: slice | Array) -> Value:
    """The positions `index` of one axis."""
    dim %= len(value.shape)
    n = value.shape[dim]
    positions = np.arange(n)[index]
    if len(positions) > 1:
        steps = np.unique(np.diff(positions))
        if len(steps) == 1 and steps[0] > 1 and n % steps[0] == 0:
            _tie_blocks(labels, value, dim, int(steps[0]))
    if len(positions) == n and np.array_equal(positions, np.arange(n)):
        return value
    fields = [
        Field(squeeze_constant(f.array.take(positions, axis=dim)) if f.array.shape[dim] > 1 else f.array, f.dim)
        for f in value.fields
    ]
    shape = (*value.shape[:dim], len(positions), *value.shape[dim + 1 :])
    return replace(value, shape=shape).with_fields(fields)


def _tie_blocks(labels: Labels, value: Value, dim: int, step: int) -> None:
    """A strided pick goes on working only if whole runs of `step` positions are removed: unite each run."""
    for f in value.on(dim):
        array = np.moveaxis(f.array, dim, -1)
        array = array.reshape(*array.shape[:-1], -1, step)
        for k in range(1, step):
            labels.unify(array[..., 0], array[..., k])


def drop_dim(labels: Labels, value: Value, dim: int, index: int) -> Value:
    """Position `index` of axis `dim`, without the axis; the axis' own labels are frozen."""
    dim %= len(value.shape)
    fields: list[Field] = []
    for f in value.fields:
        if f.dim == dim:
            labels.freeze_positions(f.array)
            continue
        array = f.array.take([index], axis=dim) if f.array.shape[dim] > 1 else f.array
        fields.append(Field(squeeze_constant(array.squeeze(dim)), f.dim - (f.dim > dim)))
    shape = value.shape[:dim] + value.shape[dim + 1 :]
    return Value(shape, (), value.depends, None, value.names).with_fields(fields)


def cat(labels: Labels, values: Sequence[Value], dim: int) -> Value:
    """The tensors joined along `dim`; their labels on the other axes are united."""
    values = [v for v in values if v.shape != (0,)]
    nd = len(values[0].shape)
    dim %= nd
    sizes = [v.shape[dim] for v in values]
    shape = list(values[0].shape)
    shape[dim] = sum(sizes)
    fields: list[Field] = []
    for axis in range(nd):
        stacks = [v.on(axis) for v in values]
        depth = max(len(s) for s in stacks)
        if depth == 0:
            continue
        if axis == dim:
            for level in range(1, depth + 1):
                parts = [s[-level].array if len(s) >= level else None for s in stacks]
                if any(p is None for p, s in zip(parts, stacks, strict=True) if not s):
                    for p in parts:
                        if p is not None:
                            labels.freeze(p, "joined with positions that cannot be removed")
                common = np.broadcast_shapes(
                    *[tuple(1 if d == dim else n for d, n in enumerate(p.shape)) for p in parts if p is not None]
                )
                rows = []
                for p, n in zip(parts, sizes, strict=True):
                    target = tuple(n if d == dim else c for d, c in enumerate(common))
                    rows.append(np.full(target, NONE) if p is None else np.broadcast_to(p, target))
                fields.append(Field(squeeze_constant(np.concatenate(rows, axis=dim)), dim))
            continue
        first = next(s for s in stacks if s)
        for s in stacks:
            if s is first:
                continue
            if values[0].shape[axis] > 1:
                join(labels, first, s)
        if all(stacks) or not whole_axis(first):
            fields += first
    depends = any(v.depends for v in values)
    # a field of another axis that varied along `dim` no longer fits the joined size: fall back on its first slice
    fixed = []
    for f in fields:
        if f.dim != dim and f.array.shape[dim] > 1:
            whole = [g.array for v in values for g in v.on(f.dim)[-1:]]
            for g in whole:
                labels.unify(f.array.take([0], axis=dim), g)
            fixed.append(Field(f.array.take([0], axis=dim), f.dim))
        else:
            fixed.append(f)
    return Value(tuple(shape), tuple(sort_fields(fixed)), depends)


def whole_axis(fields: Sequence[Field]) -> bool:
    """Whether the labels vary along their own axis alone."""
    return all(len(f.varying()) < 2 for f in fields)


def join(labels: Labels, a: Sequence[Field], b: Sequence[Field], reason: str = "") -> None:
    """Unite the fields of one axis of two tensors that meet element by element, the finest with the finest."""
    if bool(a) != bool(b):
        for f in [*a, *b]:
            labels.freeze(f.array, reason or "meets an axis of fixed size")
        return
    for f, g in zip(reversed(a), reversed(b), strict=False):
        labels.unify(f.array, g.array)
    longer, shorter = (a, b) if len(a) > len(b) else (b, a)
    for f in longer[: len(longer) - len(shorter)]:
        labels.cover(f.array, shorter[-1].array)
