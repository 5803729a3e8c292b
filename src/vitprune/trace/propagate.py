"""The walk: every operator of a captured model through its rule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from vitprune.trace.capture import Captured, module_path, op_name, shapes_of
from vitprune.trace.labels import Array
from vitprune.trace.rules import rule_for
from vitprune.trace.rules_math import unknown
from vitprune.trace.value import Field, Value
from vitprune.trace.walk import Walk


@dataclass(frozen=True, slots=True, eq=False)
class Propagated:
    """The walk's outcome: every node's value, every tensor's labels, and the facts collected."""

    walk: Walk
    values: Mapping[str, Any]  # node name -> Value or tuple of them
    parameters: frozenset[str]
    tensors: Mapping[str, tuple[Array | None, ...]]  # parameter or buffer -> labels of each dim (None: size 1)


def propagate(captured: Captured, batches: frozenset[int]) -> Propagated:
    """Labels for every tensor, by walking the operators in order."""
    walk = Walk(batches=batches)
    values: dict[str, Any] = {}
    tensors: dict[str, tuple[Array | None, ...]] = {}
    for node in captured.nodes:
        walk.node = node.name
        if node.op == "placeholder":
            values[node.name] = _placeholder(walk, node, captured, tensors)
        elif node.op == "call_function":
            values[node.name] = _call(walk, node, values)
        elif node.op == "output":
            for value in _flat(_resolve(node.args, values)):
                for f in value.fields:
                    walk.labels.freeze(f.array, "the model's output")
    return Propagated(walk, values, captured.parameters, tensors)


def _placeholder(walk: Walk, node: Node, captured: Captured, tensors: dict[str, tuple[Array | None, ...]]) -> Value:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return Value(())
    shape = tuple(int(s) for s in meta.shape)
    if node.name in captured.inputs:
        return Value(shape, (), True)
    if node.name in captured.constants or not meta.is_floating_point():
        return Value(shape)
    name = captured.tensors[node.name]
    if not node.users:
        return Value(shape)  # a parameter that this forward pass does not use keeps its size
    if name not in tensors:
        tensors[name] = tuple(walk.labels.new(n) if n > 1 else None for n in shape)
    nd = len(shape)
    fields = tuple(
        Field(line.reshape(tuple(-1 if d == k else 1 for k in range(nd))), d)
        for d, line in enumerate(tensors[name])
        if line is not None
    )
    return Value(shape, fields, False, None, frozenset({name}))


def _resolve(arg: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(arg, Node):
        return values.get(arg.name)
    if isinstance(arg, (list, tuple)):
        return type(arg)(_resolve(a, values) for a in arg)
    return arg


def _flat(arg: Any) -> list[Value]:
    if isinstance(arg, Value):
        return [arg]
    if isinstance(arg, (list, tuple)):
        return [v for a in arg for v in _flat(a)]
    return []


def _call(walk: Walk, node: Node, values: Mapping[str, Any]) -> Any:
    args = _resolve(tuple(node.args), values)
    kwargs = {k: _resolve(v, values) for k, v in node.kwargs.items()}
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], tuple) else None
    walk.op, walk.module, walk.shapes = op_name(node), module_path(node), shapes_of(node)
    if not walk.shapes:
        return None
    try:
        result = rule_for(walk.op)(walk, *args, **kwargs)
    except (TypeError, AttributeError, IndexError, ValueError, KeyError):
        # a form of the operator that its rule does not foresee is treated as unknown: frozen and reported
        return unknown(walk, *args, **kwargs)
    results = result if isinstance(result, tuple) else (result,)
    assert all(r.shape == s for r, s in zip(results, walk.shapes, strict=True)), (
        f"{walk.op} in {walk.module}: rule gives {[r.shape for r in results]}, operator {walk.shapes}"
    )
    return result
