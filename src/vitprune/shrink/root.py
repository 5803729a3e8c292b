"""The call of the model itself, which has no marks: read off the captured program's own signature."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from vitprune.trace.capture import Captured
from vitprune.trace.marks import Call, Leaf

ROOT = -1  # its number among the calls


def _tensor_positions(captured: Captured) -> tuple[list[Any], Any, dict[int, int]]:
    """The flat inputs, how they are nested, and for each position of a tensor its number among the tensors."""
    flat, nesting = tree_flatten(captured.program.example_inputs)
    tensors = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
    return flat, nesting, {position: number for number, position in enumerate(tensors)}


def root_call(captured: Captured) -> Call:
    """The call that was captured, its tensors replaced by leaves."""
    flat, nesting, numbers = _tensor_positions(captured)
    args, kwargs = tree_unflatten([Leaf(numbers[i]) if i in numbers else v for i, v in enumerate(flat)], nesting)
    outputs = root_outputs(captured)
    named = captured.program.graph_signature.user_outputs
    results = [Leaf(len(numbers) + i) if i in outputs else value for i, value in enumerate(named)]
    return Call("", args, kwargs, len(numbers), tree_unflatten(results, captured.program.call_spec.out_spec))


def root_inputs(captured: Captured) -> dict[int, Node]:
    """Number of each tensor among the arguments -> its placeholder."""
    _, _, numbers = _tensor_positions(captured)
    names = list(captured.program.graph_signature.user_inputs)
    placeholders = {n.name: n for n in captured.nodes if n.op == "placeholder"}
    return {number: placeholders[names[position]] for position, number in numbers.items()}


def root_outputs(captured: Captured) -> dict[int, str]:
    """Position of each tensor among the flat results -> the node that makes it."""
    names = {n.name for n in captured.nodes}
    outputs = captured.program.graph_signature.user_outputs
    return {i: name for i, name in enumerate(outputs) if isinstance(name, str) and name in names}
