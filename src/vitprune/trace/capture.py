"""One model, one example, one list of operators: torch.export, with names put right."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from vitprune.errors import ModelError
from vitprune.modes import evaluating
from vitprune.trace.marks import Calls, marked


class CaptureError(ModelError):
    """A forward pass that failed while it was captured."""

    modules: tuple[str, ...] = ()  # composite modules that were running, the innermost last


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """The operators of one forward pass."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, str]  # placeholder name -> parameter or buffer name
    parameters: frozenset[str]  # those names that are parameters
    inputs: frozenset[str]  # placeholder names of the user's inputs
    constants: frozenset[str]  # placeholder names of constants made while building
    calls: Calls  # the calls of composite modules, numbered as their marks are
    program: Any = None


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Captured:
    """The operators that `model(*args, **kwargs)` runs in eval mode, composite ones whole.

    The model's train/eval mode is restored. Use a batch of 2 or more: size 1 cannot be told from broadcasting.

    Raises ModelError if the forward pass fails or cannot be captured (data-dependent control flow).
    """
    calls: Calls | None = None
    log = logging.getLogger("torch._subclasses.fake_tensor")  # tells of failures that are caught and told below
    silent, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), torch.no_grad(), evaluating(model), _attributes_kept(model):
            warnings.simplefilter("ignore")
            with marked(model) as calls:
                program = torch.export.export(model, args, dict(kwargs or {}), strict=False)
    except Exception as error:
        failure = CaptureError(
            f"the forward pass of {type(model).__name__} cannot be captured: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else error!r}. It must run on the example "
            "input in eval mode, without control flow that depends on tensor values."
        )
        failure.modules = tuple(calls.calls[i].path for i in calls.open) if calls is not None else ()
        raise failure from error
    finally:
        log.disabled = silent
    signature = program.graph_signature
    parameters = frozenset(signature.inputs_to_parameters.values())
    tensors = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    constants = frozenset(signature.inputs_to_lifted_tensor_constants) | frozenset(
        getattr(signature, "inputs_to_lifted_custom_objs", {})
    )
    placeholders = {n.name for n in program.graph.nodes if n.op == "placeholder"}
    inputs = frozenset(placeholders - set(tensors) - constants)
    return Captured(tuple(program.graph.nodes), tensors, parameters, inputs, constants, calls, program)


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass stores on its modules: ConViT keeps an index, which would be a fake tensor here."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, was in before:
            if now.keys() != was.keys() or any(now[name] is not value for name, value in was.items()):
                now.clear()
                now.update(was)


def op_name(node: Node) -> str:
    """The operator's plain name: 'linear' for aten.linear.default."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is not None:
        return str(packet.__name__)
    return str(getattr(target, "__name__", target))


def module_path(node: Node) -> str:
    """Path of the innermost module whose forward ran the operator, '' for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths else ""


def shapes_of(node: Node) -> tuple[tuple[int, ...], ...]:
    """Shapes of the node's tensor results."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (tuple(int(s) for s in value.shape),)
    if isinstance(value, (list, tuple)):
        return tuple(tuple(int(s) for s in t.shape) for t in value if isinstance(t, torch.Tensor))
    return ()
