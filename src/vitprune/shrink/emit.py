"""A module's forward, written anew from the trace with the sizes that pruning leaves.

The generated function reads the same parameters under the same names and calls the same child modules; the module
keeps its class. Sizes of the batch and of the tokens stay dynamic wherever the trace shows where they come from.
"""

from __future__ import annotations

import itertools
import linecache
import operator
import types
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from vitprune.shrink import operators, ragged
from vitprune.shrink.dynamic import NeedsGrowth, Sizes
from vitprune.shrink.growth import Grown, batches, grown
from vitprune.shrink.keep import Keep
from vitprune.shrink.pieces import Piece, Stack
from vitprune.shrink.root import ROOT, root_call, root_inputs, root_outputs
from vitprune.shrink.signature import CannotEmit, Signature, attribute_path, construct, destructure
from vitprune.shrink.writer import Writer
from vitprune.trace.capture import module_path, op_name
from vitprune.trace.marks import MARK

SKIPPED = frozenset(["_assert_tensor_metadata"])
_numbers = itertools.count()


class Emitter:
    """Writes one module's forward."""

    def __init__(self, root: nn.Module, keep: Keep, path: str, more: Grown | None = None) -> None:
        captured = keep.graph.detail.captured
        numbers = captured.calls.of(path) if path else [ROOT]
        if len(numbers) != 1:
            raise CannotEmit(f"it runs {len(numbers)} times in a forward pass")
        self.captured = captured
        self.number = numbers[0]
        self.calls = captured.calls.calls
        self.call = self.calls[self.number] if path else root_call(captured)
        module = root.get_submodule(path)
        signature = Signature(module, self.call)
        sizes = Sizes((), batches(captured), more is not None)
        self.writer = Writer(root, module, path, keep, self.call, signature, more or {}, sizes)
        self.results: dict[int, str] = {}

    def source(self) -> str:
        """The function's source; fills the writer's constants with what it refers to."""
        w = self.writer
        nodes = self._segment()
        if self.number == ROOT:
            for number, node in root_inputs(self.captured).items():
                w.bind(node, w.signature.leaves[number])
        i = 0
        while i < len(nodes):
            i = self._step(nodes, i)
        if self.number == ROOT:
            by_name = {n.name: n for n in self.captured.nodes}
            for number, name in root_outputs(self.captured).items():
                self.results[self.call.inputs + number] = w.tensor(by_name[name])
        returned = construct(self.call.result, self.results, w.constants)
        head = [f"def forward({w.signature.parameters}):"]
        for name in w.signature.guards:
            text = f"{name} is not supported by the pruned {w.path or 'model'}: it was traced without; trace with an "
            head += [f"    if {name} is not None:", f"        raise ValueError({text + 'example that has it'!r})"]
        return "\n".join([*head, *(f"    {line}" for line in w.lines), f"    return {returned}", ""])

    def _segment(self) -> list[Node]:
        """The nodes that ran between the module's first and last mark."""
        nodes = [n for n in self.captured.nodes if n.op == "call_function"]
        if self.number == ROOT:
            return nodes
        mine = [i for i, n in enumerate(nodes) if (m := _mark_of(n)) is not None and m[0] == self.number]
        inside = [i for i, n in enumerate(nodes) if self.writer.path in _paths(n)]
        if not mine:
            raise CannotEmit("it takes and returns no tensor")
        return nodes[min([*mine, *inside]) : max(mine) + 1]

    def _step(self, nodes: list[Node], i: int) -> int:
        """Write what node i and, for a call of a child, the nodes after it do; returns where to go on."""
        w, node = self.writer, nodes[i]
        mark = _mark_of(node)
        if mark is not None and mark[0] == self.number:
            if mark[1] < self.call.inputs:
                w.bind(node, w.signature.leaves[mark[1]])
            else:
                self.results[mark[1]] = w.tensor(node.args[0])
            return i + 1
        if mark is not None:
            done = self._child_call(nodes, i, mark[0])
            if done:
                return done
            source = node.args[0]
            assert isinstance(source, Node)
            w.env[node.name] = w.env.get(source.name)
            return i + 1
        if module_path(node) != w.path and self._leaf_call(node, module_path(node)):
            return i + 1
        self._operator(node)
        return i + 1

    def _child_call(self, nodes: list[Node], i: int, number: int) -> int:
        """Write a call of a composite child; the index after its last node, or 0 if its nodes must be inlined."""
        w, call = self.writer, self.calls[number]
        if not call.path.startswith(w.prefix):
            return 0
        ends = [j for j in range(i, len(nodes)) if (m := _mark_of(nodes[j])) is not None and m[0] == number]
        leaves: dict[int, str] = {}
        outputs: list[tuple[Node, int]] = []
        for j in ends:
            _, leaf = _mark_of(nodes[j]) or (0, 0)
            if leaf < call.inputs:
                source = nodes[j].args[0]
                assert isinstance(source, Node)
                if source.op == "call_function" and source.name not in w.env:
                    return 0
                leaves[leaf] = w.tensor(source)
            else:
                outputs.append((nodes[j], leaf))
        if len(leaves) != call.inputs or not outputs:
            return 0
        try:
            args = [construct(a, leaves, w.constants) for a in call.args]
            args += [f"{k}={construct(v, leaves, w.constants)}" for k, v in call.kwargs.items()]
        except CannotEmit:
            return 0
        name = w.say(f"{attribute_path(call.path[len(w.prefix) :])}({', '.join(args)})", "r")
        picks: dict[int, str] = {}
        destructure(call.result, name, picks)
        for node, leaf in outputs:
            w.env[node.name] = picks[leaf]
        return ends[-1] + 1

    def _leaf_call(self, node: Node, child: str) -> bool:
        """Write a call of an elementary layer that ran as the one operator `node`."""
        w = self.writer
        if not child.startswith(w.prefix):
            return False
        module = w.root.get_submodule(child)
        if self.captured.calls.of(child) or any(True for _ in module.children()):
            return False
        inputs = [a for a in node.args if isinstance(a, Node) and a.op != "placeholder"]
        inputs += [a for a in node.args if isinstance(a, Node) and a.name in self.captured.inputs]
        same = [n for n in self.captured.nodes if n.op == "call_function" and module_path(n) == child]
        if len(inputs) != 1 or len(same) != 1 or op_name(node) in operators.VIEWS or node.kwargs:
            return False
        w.env[node.name] = w.say(f"{attribute_path(child[len(w.prefix) :])}({w.tensor(inputs[0])})")
        return True

    def _operator(self, node: Node) -> None:
        w, name = self.writer, op_name(node)
        if name in SKIPPED:
            return
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        known = w.env.get(first.name) if first is not None else None
        if node.target is operator.getitem:
            index = node.args[1]
            assert isinstance(index, int)
            w.env[node.name] = known[index] if isinstance(known, list) else f"{known}[{index}]"
            ragged.settle(w, node)
        elif isinstance(known, (Piece, Stack)):
            ragged.follow(w, node, known)
        elif ragged.begins(w, node):
            ragged.begin(w, node)
        else:
            operators.write(w, node, name)


def _mark_of(node: Node) -> tuple[int, int] | None:
    """(call, leaf) of a mark."""
    if node.op != "call_function" or op_name(node) != MARK:
        return None
    _, call, leaf = node.args
    assert isinstance(call, int) and isinstance(leaf, int)
    return call, leaf


def _paths(node: Node) -> set[str]:
    return {str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()}


def reemit(model: nn.Module, small: nn.Module, keep: Keep, path: str) -> str:
    """Give the module at `path` of `small` a forward written from the trace of `model`; returns its source.

    Raises CannotEmit with the reason where that is not possible.
    """
    emitter = Emitter(model, keep, path)
    try:
        source = emitter.source()
    except NeedsGrowth:
        emitter = Emitter(model, keep, path, grown(model, keep.graph.detail.captured))
        source = emitter.source()
    file = f"<vitprune {next(_numbers)}: {type(emitter.writer.module).__name__} at {path}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # for tracebacks and torch.compile
    scope: dict[str, Any] = {"torch": torch, "device": torch.device, **emitter.writer.constants}
    exec(compile(source, file, "exec"), scope)  # source written above from the trace: no user text
    target = small.get_submodule(path)
    target.forward = types.MethodType(scope["forward"], target)
    return source
