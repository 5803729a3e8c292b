"""Rules of the operators that sum over an axis: linear, matrix products, convolutions, attention, einsum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vitprune.trace.elementwise import drop_axes, pointwise
from vitprune.trace.labels import Array
from vitprune.trace.moves import insert_dim, join, lift, permute, whole_axis
from vitprune.trace.value import Attention, Field, Value, sort_fields
from vitprune.trace.walk import Walk, all_sizes, axis_size


def _contract(w: Walk, a: tuple[Field, ...], b: tuple[Field, ...]) -> None:
    join(w.labels, a, b, "summed against an axis of fixed size (the input, or constants)")


def _move(f: Field, nd: int, dim: int) -> Field:
    """A field of a 1-axis line put on axis `dim` of a tensor with `nd` axes."""
    return Field(f.array.reshape(tuple(-1 if d == dim else 1 for d in range(nd))), dim)


def linear(w: Walk, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """y = x W^T + b; weight (out, in)."""
    last = len(x.shape) - 1
    inner = tuple(_move(Field(f.array.take([0], axis=0), 1), last + 1, last) for f in weight.on(1))
    for f in weight.on(1):
        w.labels.summed.append(f.array.ravel())
    if x.shape[last] > 1 or inner:
        _contract(w, x.on(last), inner)
    out_fields = [_move(Field(f.array.take([0], axis=1), 0), last + 1, last) for f in weight.on(0)]
    fields = [f for f in drop_variation(x, last) if f.dim != last] + out_fields
    shape = (*x.shape[:-1], weight.shape[0])
    w.note_cost([*all_sizes(x), axis_size(weight, 0)], x.depends)
    out = Value(shape, tuple(sort_fields(fields)), x.depends or weight.depends, _scores(x))
    if bias is not None:
        out = replace(pointwise(w.labels, [out, bias], shape), attention=out.attention)
    return out


def _scores(x: Value) -> Attention | None:
    return x.attention


def drop_variation(value: Value, dim: int) -> list[Field]:
    """The fields of a value, none of them depending on axis `dim` but that axis' own."""
    out = []
    for f in value.fields:
        if f.dim != dim and f.array.shape[dim] > 1:
            f = Field(f.array.take([0], axis=dim), f.dim)
        out.append(f)
    return out


def addmm(w: Walk, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a b."""
    return pointwise(w.labels, [matmul(w, a, b), bias], w.shape)


def matmul(w: Walk, a: Value, b: Value) -> Value:
    """Batched product (..., n, k) x (..., k, m), vectors allowed."""
    vector_a, vector_b = len(a.shape) == 1, len(b.shape) == 1
    if vector_a:
        a = insert_dim(a, 0)
    if vector_b:
        b = insert_dim(b, 1)
    nd = max(len(a.shape), len(b.shape))
    a, b = lift(a, nd), lift(b, nd)
    row, col = nd - 2, nd - 1
    swapped = permute(b, [*range(nd - 2), col, row])  # (..., m, k): the summed axis last, as in a
    inner_a = tuple(_fix(f, row) for f in a.on(col))
    inner_b = tuple(_fix(f, row) for f in swapped.on(col))
    if a.shape[col] > 1:
        one_sided = bool(inner_a) != bool(inner_b)
        _contract(w, a.on(col) if one_sided else inner_a, swapped.on(col) if one_sided else inner_b)
    fields: list[Field] = []
    batch = []
    for d in range(nd - 2):
        present = [v.on(d) for v in (a, b) if v.shape[d] > 1]
        present = [tuple(_fix(_fix(f, row), col) for f in p) for p in present]
        if not any(present):
            continue
        first = max(present, key=len)
        for other in present:
            if other is not first:
                join(w.labels, first, other, "batch axis of a product that meets a fixed one")
        if all(present) or not whole_axis(first):
            fields += first
        batch += [f.array for f in first]
    fields += [_fix(f, col) for f in a.on(row)]
    out_b = [_fix(f, row) for f in b.on(col)]
    fields += out_b
    shape = tuple(
        max(a.shape[d], b.shape[d]) if d < nd - 2 else (a.shape[row] if d == row else b.shape[col]) for d in range(nd)
    )
    depends = a.depends or b.depends
    attention = None
    scores, rest = (a if a.attention is not None else b), [*out_b, *a.on(row)]
    if scores.attention is not None:
        for array in batch:
            w.labels.tag(array, "heads")
        for array in scores.attention.contracted:
            w.labels.tag(array, "qk")
        for f in rest:
            w.labels.tag(f.array, "v")
        for f in [*inner_a, *inner_b]:  # attention between channels: keys and values share the summed axis
            w.labels.tag(f.array, "qk")
    elif a.depends and b.depends and (inner_a or batch):
        attention = Attention(False, tuple(f.array for f in inner_a))
    sizes = [axis_size(a if a.shape[d] > 1 else b, d) for d in range(nd - 2)]
    w.note_cost([*sizes, axis_size(a, row), axis_size(a, col), axis_size(b, col)], depends)
    out = Value(shape, tuple(sort_fields(fields)), depends, attention)
    if vector_a or vector_b:
        gone = ([row] if vector_a else []) + ([col] if vector_b else [])
        out = drop_axes(out, gone, False)
    return out


def _fix(f: Field, dim: int) -> Field:
    """The field at the first position of axis `dim` if it depends on it."""
    return Field(f.array.take([0], axis=dim), f.dim) if f.array.shape[dim] > 1 and f.dim != dim else f


def baddbmm(w: Walk, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a b, batched."""
    out = matmul(w, a, b)
    return replace(pointwise(w.labels, [out, bias], w.shape), attention=out.attention)


def softmax(w: Walk, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """exp(x) / sum exp(x) over `dim`."""
    for f in x.on(dim):
        w.labels.inexact(f.array, "softmax over a channel axis")
    attention = None
    if x.attention is not None:
        for array in x.attention.contracted:
            w.labels.tag(array, "qk")
        attention = Attention(True)
    return replace(x, attention=attention)


def attention(
    w: Walk,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(q k^T scale + mask) v with q (..., n, d), k (..., m, d), v (..., m, e)."""
    nd = len(q.shape)
    if enable_gqa:
        for value in (q, k, v):
            for d in range(nd - 2):
                for f in value.on(d):
                    w.labels.freeze(f.array, "heads of grouped-query attention")
        k = replace(k, fields=tuple(f for f in k.fields if f.dim >= nd - 2))
        v = replace(v, fields=tuple(f for f in v.fields if f.dim >= nd - 2))
    scores = matmul(w, q, permute(k, [*range(nd - 2), nd - 1, nd - 2]))
    if not enable_gqa and scores.attention is None:
        scores = replace(scores, attention=Attention(False, ()))
    if mask is not None:
        kept = scores.attention
        scores = replace(pointwise(w.labels, [scores, mask], scores.shape), attention=kept)
    if scores.attention is None:
        scores = replace(scores, attention=Attention(False, tuple(f.array for f in q.on(nd - 1))))
    return matmul(w, softmax(w, scores, nd - 1), v)


def conv(
    w: Walk,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Convolution of x (batch, channels, ...) with weight (out, in / groups, ...)."""
    nd = len(weight.shape)
    batched = len(x.shape) == nd
    if not batched:
        x = insert_dim(x, 0)
    for d in range(2, nd):
        for f in weight.on(d):
            w.labels.freeze(f.array, "kernel axis of a convolution")
        for f in x.on(d):
            w.labels.freeze(f.array, "convolved over")
    flat = [Field(_line(f), 0) for f in weight.on(0)]
    inner = [Field(_line(f), 0) for f in weight.on(1)]
    line = (1, -1) + (1,) * (len(x.shape) - 2)
    channels = x.on(1)  # may also depend on the batch axis, where heads are folded into it
    for f in weight.on(1):
        w.labels.summed.append(f.array.ravel())
    out_c = weight.shape[0]
    if groups == 1:
        if x.shape[1] > 1 or inner:
            _contract(w, channels, tuple(Field(f.array.reshape(line), 1) for f in inner))
    elif weight.shape[1] == 1:  # depthwise: every output channel reads one input channel
        reads = tuple(Field(np.repeat(f.array, out_c // groups, axis=1), 1) for f in channels)
        own = tuple(Field(f.array.reshape(line), 1) for f in flat)
        join(w.labels, own, reads, "depthwise convolution of a fixed axis")
        coarse = [Field(f.array.take([0], axis=0).reshape(-1), 0) for f in reads[:-1]]
        flat = coarse + flat
    else:  # grouped: the same positions are removed in every group
        for f in channels:
            array = f.array.take([0], axis=0).reshape(groups, -1)
            for g in range(groups):
                w.labels.unify(array[g], inner[-1].array)
        if not channels:
            for f in inner:
                w.labels.freeze(f.array, "reads an axis of fixed size")
        for f in flat:
            array = f.array.reshape(groups, -1)
            for g in range(1, groups):
                w.labels.unify(array[0], array[g])
    rank = len(w.shape)
    out_dim = rank - (nd - 1)
    fields = [_move(f, rank, out_dim) for f in flat]
    fields += [Field(f.array.reshape((-1,) + (1,) * (rank - 1)), 0) for f in x.on(0) if batched]
    out = Value(w.shape, tuple(sort_fields(fields)), x.depends or weight.depends, _scores(x))
    w.note_cost([*all_sizes(out), *(axis_size(weight, d) for d in range(1, nd))], out.depends)
    if bias is not None:
        shaped = Value(
            tuple(out_c if d == out_dim else 1 for d in range(rank)),
            tuple(_move(Field(f.array, 0), rank, out_dim) for f in bias.on(0)),
            bias.depends,
        )
        out = pointwise(w.labels, [out, shaped], w.shape)
    return out


def _line(f: Field) -> Array:
    """Labels of a field at the first position of every other axis."""
    return f.array[tuple(slice(None) if d == f.dim else 0 for d in range(f.array.ndim))]


def einsum(w: Walk, equation: str, operands: list[Value], *_: Any, **__: Any) -> Value:
    """Any einsum over named axes: equal letters are united, letters that vanish are summed."""
    left, right = equation.replace(" ", "").split("->")
    terms = left.split(",")
    if "." in equation or any(len(set(t)) != len(t) for t in terms):
        for v in operands:
            for f in v.fields:
                w.labels.freeze(f.array, f"einsum {equation}")
        return Value(w.shape, (), any(v.depends for v in operands))
    letters = sorted(set("".join(terms)))
    lifted = []
    for term, v in zip(terms, operands, strict=True):
        order = sorted(range(len(term)), key=lambda i: letters.index(term[i]))
        p = permute(v, order)
        for pos, letter in enumerate(letters):
            if letter not in term:
                p = insert_dim(p, pos)
        lifted.append(p)
    shape = tuple(max(v.shape[d] for v in lifted) for d in range(len(letters)))
    joint = pointwise(w.labels, lifted, shape)
    if len(operands) > 1:
        w.note_cost(all_sizes(joint), joint.depends)
    gone = [d for d, letter in enumerate(letters) if letter not in right]
    summed = tuple(f.array for d in gone for f in joint.on(d))
    out = drop_axes(joint, gone, False)
    rest = [letter for letter in letters if letter in right]
    out = permute(out, [rest.index(letter) for letter in right]) if rest else out
    probs = any(v.attention is not None and v.attention.normalised for v in operands)
    if probs:
        for d, letter in enumerate(letters):
            for f in joint.on(d):
                shared = all(letter in t for t in terms)
                w.labels.tag(f.array, "heads" if shared and letter in right else "v")
        return out
    mark = Attention(False, summed) if len(operands) > 1 and all(v.depends for v in operands) else None
    return replace(out, attention=mark)
