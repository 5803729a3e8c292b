"""Which sizes of a trace grow with the batch: the same operators, captured with one image more."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_map

from vitprune.errors import ModelError
from vitprune.trace.capture import Captured, capture, op_name

Grown = Mapping[str, Node]  # node name in the trace -> the same node with one image more

_known: weakref.WeakKeyDictionary[Any, Grown] = weakref.WeakKeyDictionary()


def batches(captured: Captured) -> tuple[int, ...]:
    """The sizes of the inputs' first axes: one, but for models that take images and so many texts."""
    flat, _ = tree_flatten(captured.program.example_inputs)
    return tuple({t.shape[0] for t in flat if isinstance(t, torch.Tensor) and t.ndim and t.shape[0] > 1})


def grown(model: nn.Module, captured: Captured) -> Grown:
    """The nodes of a second capture, by the names of the first; empty where the two do not run the same operators."""
    program = captured.program
    if program not in _known:
        _known[program] = _capture(model, captured)
    return _known[program]


def _capture(model: nn.Module, captured: Captured) -> Grown:
    def one_more(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] > 1:
            return torch.cat([value, value[:1]])
        return value

    args, kwargs = captured.program.example_inputs
    try:
        other = capture(model, tree_map(one_more, args), tree_map(one_more, kwargs))
    except ModelError:
        return {}
    ours = [n for n in captured.nodes if n.op == "call_function" or n.name in captured.inputs]
    theirs = [n for n in other.nodes if n.op == "call_function" or n.name in other.inputs]
    if [op_name(n) for n in ours] != [op_name(n) for n in theirs]:
        return {}
    return {a.name: b for a, b in zip(ours, theirs, strict=True)}


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of the node's single result, () if it has none or several."""
    value = node.meta.get("val")
    return tuple(int(s) for s in value.shape) if isinstance(value, torch.Tensor) else ()
