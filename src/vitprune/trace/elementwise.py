"""Operators that act element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.trace.labels import Labels
from vitprune.trace.moves import fresh_axes, join, lift, whole_axis
from vitprune.trace.value import Field, Value


def pointwise(labels: Labels, values: Sequence[Value], shape: Sequence[int], *, residual: bool = False) -> Value:
    """The result of an operator on tensors that broadcast to `shape`; labels that meet are united.

    residual: tag axes that two input-dependent tensors share (the addition of a residual branch).
    """
    shape = tuple(shape)
    lifted = [lift(v, len(shape)) for v in values]
    fields: list[Field] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        present = [v.on(axis) for v in lifted if v.shape[axis] == size]
        labelled = [p for p in present if p]
        if not labelled:
            continue
        first = max(labelled, key=lambda p: (len(p), p[-1].array.size))
        for other in present:
            if other is not first:
                join(labels, first, other, "meets an axis of fixed size (constants, positions or the input)")
        if all(present) or not whole_axis(first):
            fields += first  # labels that met an axis of fixed size are frozen: nothing more to follow
        users = [v for v in lifted if v.depends and v.on(axis) and v.shape[axis] == size]
        if residual and len(users) > 1:
            for f in first:
                labels.tag(f.array, "residual")
    attention = next((v.attention for v in values if v.attention is not None), None)
    kept = [Field(f.array, f.dim) for f in fields]
    names = frozenset().union(*(v.names for v in values)) if len(values) == 1 else frozenset()
    return Value(shape, tuple(kept), any(v.depends for v in values), attention, names)


def drop_axes(value: Value, dims: Sequence[int], keepdim: bool) -> Value:
    """What remains after a reduction over `dims`."""
    nd = len(value.shape)
    gone = {d % nd for d in dims} if nd else set()
    fields = []
    for f in value.fields:
        if f.dim in gone:
            continue
        array = f.array
        for d in gone:
            if array.shape[d] > 1:
                array = array.take([0], axis=d)
        if keepdim:
            fields.append(Field(array, f.dim))
        else:
            fields.append(Field(array.squeeze(tuple(gone)), f.dim - sum(1 for d in gone if d < f.dim)))
    if keepdim:
        shape = tuple(1 if d in gone else n for d, n in enumerate(value.shape))
    else:
        shape = tuple(n for d, n in enumerate(value.shape) if d not in gone)
    return Value(shape, (), value.depends).with_fields(fields)


def nodes_on(value: Value, dims: Sequence[int]) -> list[Field]:
    """All fields on the given axes."""
    return [f for d in dims for f in value.on(d)] if value.shape else []


def repeat_axis(labels: Labels, value: Value, dim: int, times: int, interleave: bool) -> Value:
    """The tensor repeated along one axis: 0101 or, interleaved, 0011."""
    dim %= len(value.shape)
    fields = []
    if value.shape[dim] == 1:
        shape = tuple(times if d == dim else n for d, n in enumerate(value.shape))
        return fresh_axes(labels, value, shape, [dim])
    for f in value.fields:
        array = f.array
        if array.shape[dim] > 1:
            array = np.repeat(array, times, axis=dim) if interleave else np.concatenate([array] * times, axis=dim)
        fields.append(Field(array, f.dim))
    shape = tuple(n * times if d == dim else n for d, n in enumerate(value.shape))
    return Value(shape, tuple(fields), value.depends)
