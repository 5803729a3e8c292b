"""Rules of norms, reductions and element-wise operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vitprune.trace.elementwise import drop_axes, nodes_on, pointwise
from vitprune.trace.moves import fresh_axes
from vitprune.trace.value import Field, Value
from vitprune.trace.walk import Walk


def elementwise(w: Walk, *args: Any, **kwargs: Any) -> Value:
    """Any operator that acts element by element on its tensor arguments."""
    values = [a for a in [*args, *kwargs.values()] if isinstance(a, Value)]
    return pointwise(w.labels, values, w.shape)


def add(w: Walk, *args: Any, **kwargs: Any) -> Value:
    """Addition: axes that two input-dependent tensors share are a residual stream."""
    values = [a for a in [*args, *kwargs.values()] if isinstance(a, Value)]
    return pointwise(w.labels, values, w.shape, residual=True)


def same(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """Operators that return their first argument's elements."""
    return x


def inplace_copy(w: Walk, target: Value, source: Value, *_: Any) -> Value:
    """target[...] = source."""
    return pointwise(w.labels, [target, source], w.shape)


def like(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """zeros_like and its kin: as wide as x, no values of it."""
    return Value(x.shape, x.fields, False)


def constant(w: Walk, *_: Any, **__: Any) -> Value:
    """A new tensor of literal size."""
    return Value(w.shape)


def uniform(w: Walk, *_: Any, **__: Any) -> Value:
    """A new tensor of literal size with one value throughout: its axes take the labels they meet."""
    dims = [d for d, n in enumerate(w.shape) if n > 1 and (d or n not in w.batches)]
    value = fresh_axes(w.labels, Value(w.shape), w.shape, dims)
    return replace(value, depends=bool(w.shape) and w.shape[0] in w.batches)


def layer_norm(
    w: Walk, x: Value, size: Sequence[int], weight: Value | None = None, bias: Value | None = None, *_: Any, **__: Any
) -> Value:
    """(x - mean) / std * weight + bias over the last axes; statistics over the kept positions."""
    for d in range(len(x.shape) - len(size), len(x.shape)):
        for f in x.on(d):
            w.labels.tag(f.array, "normalised")
    return pointwise(w.labels, [x, *(p for p in (weight, bias) if isinstance(p, Value))], x.shape)


def _channels(p: Value, nd: int) -> Value:
    """A (channels,) vector put on axis 1 of a tensor with `nd` axes."""
    shape = tuple(p.shape[0] if d == 1 else 1 for d in range(nd))
    return Value(shape, tuple(Field(f.array.reshape(shape), 1) for f in p.on(0)), p.depends)


def batch_norm(w: Walk, x: Value, *params: Any) -> Value:
    """Per-channel affine map."""
    vectors = [_channels(p, len(x.shape)) for p in params[:4] if isinstance(p, Value)]
    return pointwise(w.labels, [x, *vectors], x.shape)


def group_norm(w: Walk, x: Value, groups: int, *params: Any) -> Value:
    """Norm over groups of channels; with more than one group the channels are frozen."""
    if groups > 1:
        for f in x.on(1):
            w.labels.freeze(f.array, f"group norm with {groups} groups")
    else:
        for f in x.on(1):
            w.labels.tag(f.array, "normalised")
    vectors = [_channels(p, len(x.shape)) for p in params[:2] if isinstance(p, Value)]
    return pointwise(w.labels, [x, *vectors], x.shape)


def _dims(x: Value, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(len(x.shape)))
    return [d % max(1, len(x.shape)) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def total(w: Walk, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """Sum over axes: exact, as zeros add nothing."""
    return drop_axes(x, _dims(x, dim), keepdim)


def vector_norm(w: Walk, x: Value, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """Norm over axes: exact, as zeros add nothing."""
    return drop_axes(x, _dims(x, dim), keepdim)


def mean(w: Walk, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """Mean over axes; over a channel axis it is a norm's statistic, taken over the kept positions."""
    dims = _dims(x, dim)
    for f in nodes_on(x, dims):
        w.labels.tag(f.array, "normalised")
    return drop_axes(x, dims, keepdim)


def statistic(w: Walk, x: Value, dim: Any = None, keepdim: Any = False, *_: Any, **kwargs: Any) -> Any:
    """Maximum, variance and the like: over a channel axis, zeroing is not removing."""
    keep = bool(kwargs.get("keepdim", keepdim if isinstance(keepdim, bool) else False))
    dims = _dims(x, dim)
    for f in nodes_on(x, dims):
        w.labels.inexact(f.array, f"{w.op} over a channel axis")
    out = drop_axes(x, dims, keep)
    return out if len(w.shapes) < 2 else (out, Value(out.shape, out.fields, out.depends))


def pool(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """Pooling, resizing and padding over the last axes: leading axes stay, resized ones are frozen."""
    fields = []
    for f in x.fields:
        if f.dim >= len(w.shape) or w.shape[f.dim] != x.shape[f.dim] or f.dim >= 2:
            w.labels.freeze(f.array, "resized")
            continue
        array = f.array
        for d in range(array.ndim):
            if array.shape[d] > 1 and (d >= len(w.shape) or array.shape[d] != w.shape[d]):
                array = array.take([0], axis=d)
        fields.append(Field(array, f.dim))
    return Value(w.shape, tuple(fields), x.depends)


def pad(w: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """Padding: padded axes are frozen."""
    fields = []
    for f in x.fields:
        if w.shape[f.dim] != x.shape[f.dim]:
            w.labels.freeze(f.array, "padded")
            continue
        array = f.array
        for d in range(array.ndim):
            if array.shape[d] > 1 and array.shape[d] != w.shape[d]:
                array = array.take([0], axis=d)
        fields.append(Field(array, f.dim))
    return Value(w.shape, tuple(fields), x.depends)


def roll(w: Walk, x: Value, shifts: Any, dims: Any = (), *_: Any) -> Value:
    """Cyclic shift; a shifted channel axis is frozen."""
    for f in nodes_on(x, _dims(x, dims)):
        w.labels.freeze(f.array, "rolled")
    return x


def where(w: Walk, *args: Any) -> Value:
    """Elementwise choice."""
    values = [a for a in args if isinstance(a, Value)]
    return replace(pointwise(w.labels, values, w.shape), attention=next((v.attention for v in values[1:]), None))


def cumulative(w: Walk, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Running sums and sorts: the axis is frozen."""
    for f in x.on(dim):
        w.labels.freeze(f.array, f"{w.op} along the axis")
    return Value(w.shape, x.fields, x.depends)


def unknown(w: Walk, *args: Any, **kwargs: Any) -> Any:
    """An operator without a rule: everything it reads is frozen, its result has no labels."""

    def values(a: Any) -> list[Value]:
        if isinstance(a, Value):
            return [a]
        return [v for x in a for v in values(x)] if isinstance(a, (list, tuple)) else []

    found = [v for a in [*args, *kwargs.values()] for v in values(a)]
    for v in found:
        for f in v.fields:
            w.labels.freeze(f.array, f"read by {w.op}, an operator without a rule")
    w.unknown.setdefault(w.op, w.module)
    outs = tuple(Value(s, (), any(v.depends for v in found)) for s in w.shapes)
    return outs[0] if len(outs) == 1 else outs
