"""What is known while a forward is written: which expression holds which traced tensor, and the lines so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from vitprune.shrink.dynamic import Size, Sizes
from vitprune.shrink.growth import Grown, shape_of
from vitprune.shrink.keep import Keep
from vitprune.shrink.pieces import Piece, Stack
from vitprune.shrink.signature import CannotEmit, Signature, attribute_path
from vitprune.trace.capture import Captured, op_name
from vitprune.trace.marks import Call


@dataclass(slots=True)
class Writer:
    """The state of one module's new forward."""

    root: nn.Module
    module: nn.Module
    path: str  # of the module in root
    keep: Keep
    call: Call  # the one call of the module that was traced
    signature: Signature
    more: Grown  # the trace with one image more, empty where it is not known
    sizes: Sizes
    env: dict[str, Any] = field(default_factory=dict)  # node name -> expression, list of them, Piece or Stack
    lines: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)  # names that the lines refer to

    @property
    def captured(self) -> Captured:
        """The trace of the whole model."""
        captured: Captured = self.keep.graph.detail.captured
        return captured

    @property
    def prefix(self) -> str:
        """What the names of the module's own tensors and children begin with."""
        return f"{self.path}." if self.path else ""

    @property
    def anchor(self) -> str:
        """An expression of some tensor, for its device."""
        return next(iter(self.signature.leaves.values()), "next(self.parameters())")

    def say(self, expression: str, letter: str = "t") -> str:
        """A new name, to which a new line assigns the expression."""
        name = f"{letter}{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def tensor(self, node: Any) -> str:
        """The expression of a tensor.

        Raises CannotEmit for one that the module neither made nor owns.
        """
        assert isinstance(node, Node)
        if node.op == "placeholder" and node.name not in self.env:
            return self._owned(node)
        found = self.env.get(node.name)
        if isinstance(found, (Piece, Stack)):
            raise CannotEmit(f"unequal parts that {op_name(node)} hands on")
        if not isinstance(found, str):
            raise CannotEmit(f"it reads {node.name}, which is made elsewhere")
        return found

    def _owned(self, node: Node) -> str:
        """A parameter, a buffer, or a constant made in the forward."""
        name = self.captured.tensors.get(node.name)
        if name is not None and name.startswith(self.prefix):
            return attribute_path(name[len(self.prefix) :])
        if name is not None:
            target = _attribute(self.root, name)
            for alias, tensor in self._tensors():
                if tensor is target:
                    return attribute_path(alias)
        if node.name in self.captured.constants:
            program = self.captured.program
            value = program.constants.get(program.graph_signature.inputs_to_lifted_tensor_constants.get(node.name))
            if isinstance(value, torch.Tensor):
                key = f"_tensor{len(self.constants)}"
                self.constants[key] = value.detach().clone()
                return f"{key}.to({self.anchor}.device)"
        raise CannotEmit(f"it reads {name or node.name}, which it does not own")

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.module.named_parameters(remove_duplicate=False)
        yield from self.module.named_buffers(remove_duplicate=False)

    def argument(self, value: Any) -> str:
        """The expression of any argument of an operator."""
        if isinstance(value, Node):
            return self.tensor(value)
        if isinstance(value, (list, tuple)):
            return "[" + ", ".join(self.argument(v) for v in value) + "]"
        if isinstance(value, torch.device):
            return f"{self.anchor}.device"
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return str(value)
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return f"float('{value}')"
        return repr(value)

    def bind(self, node: Node, expression: str) -> None:
        """State that an argument of the module holds this tensor: sizes can be read off its axes that stay whole."""
        self.env[node.name] = expression
        value = self.keep.value(node.name)
        if value is None:
            return
        larger = self.larger(node)
        axes = [
            Size(f"{expression}.size({d})", n, larger[d] if larger else None)
            for d, n in enumerate(value.shape)
            if n > 1 and not value.on(d)
        ]
        self.sizes = replace(self.sizes, anchors=(*self.sizes.anchors, *axes))

    def larger(self, node: Node) -> tuple[int, ...]:
        """The node's dense shape with one image more, () if that is not known."""
        return shape_of(self.more[node.name]) if node.name in self.more else ()

    def grown(self, source: Node, out: Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The dense shapes of two nodes with one image more, None if they are not known."""
        if out.name not in self.more:
            return None
        value = self.keep.value(source.name)  # parameters and buffers do not grow
        return self.larger(source) or (value.shape if value is not None else ()), self.larger(out)


def _attribute(root: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(owner), leaf, None)
