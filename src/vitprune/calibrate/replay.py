"""A captured forward pass, run a stretch at a time on the module's present weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from vitprune.trace.capture import Captured, capture, op_name
from vitprune.trace.marks import MARK

Env = dict[str, Any]  # node name -> its value, of those that are still needed


class Replay:
    """Runs the operators of one model for batches of one size.

    Changes of the module's weights in place are felt by all later operators.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.size = len(images)
        self.captured: Captured = capture(model, (images,))
        program = self.captured.program
        self.runner = Interpreter(program.graph_module)
        self.nodes: list[Node] = list(program.graph_module.graph.nodes)
        self.at = {node.name: i for i, node in enumerate(self.nodes)}
        targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        self.constants = {name: program.constants[targets[name]] for name in self.captured.constants}
        last: dict[str, int] = {}
        for i, node in enumerate(self.nodes):
            for used in node.all_input_nodes:
                last[used.name] = i
        self.dies: dict[int, list[str]] = {}
        for name, i in last.items():
            self.dies.setdefault(i, []).append(name)
        self.tensors: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False))}
        self.tensors |= dict(model.named_buffers(remove_duplicate=False))

    def start(self, images: Tensor) -> Env:
        """The values before the first operator."""
        (name,) = self.captured.inputs
        return {name: images}

    def advance(self, env: Env, begin: int, end: int) -> None:
        """Run the operators `begin` <= i < `end` on `env`, in place; values that no later one needs are dropped."""
        for i in range(begin, end):
            node = self.nodes[i]
            if node.op == "call_function":
                args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self._value(n, env))
                marked = op_name(node) == MARK  # of where a module begins or ends: the value itself
                env[node.name] = args[0] if marked else self.runner.call_function(node.target, args, kwargs)
            for name in self.dies.get(i, ()):
                env.pop(name, None)

    def given(self, env: Env, operator: str, number: int) -> Any:
        """The value of an argument of the operator that is the next to run; None where it has none there."""
        arguments = self.nodes[self.at[operator]].args
        node = arguments[number] if number < len(arguments) else None
        return self._value(node, env) if isinstance(node, Node) else None

    def outputs(self, env: Env, begin: int) -> Any:
        """What the model returns, as it returns it; the operators from `begin` on are run."""
        last = len(self.nodes) - 1
        self.advance(env, begin, last)
        flat: Any = torch.fx.node.map_arg(self.nodes[last].args[0], lambda n: self._value(n, env))
        return pytree.tree_unflatten(list(flat), self.captured.program.call_spec.out_spec)

    def _value(self, node: Node, env: Env) -> Any:
        if node.name in env:
            return env[node.name]
        if node.name in self.captured.tensors:
            return self.tensors[self.captured.tensors[node.name]].detach()
        return self.constants[node.name]
