"""A module's forward, written anew from the trace with the sizes that pruning leaves.

The generated function reads the same parameters under the same names and calls the same child modules; the module
keeps its class. Sizes of the batch and of the tokens stay dynamic wherever the trace shows where they come from.
"""

from __future__ import annotations

import linecache
import operator
import types
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from vitprune.shrink import pieces
from vitprune.shrink.dynamic import NeedsGrowth, Size, Sizes, expand_sizes, new_sizes, view_sizes
from vitprune.shrink.growth import Grown, batches, grown, shape_of
from vitprune.shrink.keep import Keep
from vitprune.shrink.literals import CREATED, SIZED, Ragged, is_ragged, literals
from vitprune.shrink.root import ROOT, root_call, root_inputs, root_outputs
from vitprune.shrink.signature import CannotEmit, Signature, attribute_path, construct, destructure
from vitprune.trace.capture import module_path, op_name
from vitprune.trace.marks import MARK, Call

VIEWS = frozenset("view reshape _unsafe_view flatten unflatten".split())
SKIPPED = frozenset(["_assert_tensor_metadata"])
COUNTED: dict[str, tuple[int, ...]] = {  # operators with arguments that may count images, and where those stand
    "repeat": (1,), "tile": (1,), "arange": (0, 1), "repeat_interleave": (1,), "slice": (2, 3), "narrow": (2, 3),
    "split": (1,), "split_with_sizes": (1,),
}  # fmt: skip
ALIKE = frozenset(["contiguous", "clone", "alias", "detach", MARK])


class Emitter:
    """Writes one module's forward."""

    def __init__(self, root: nn.Module, keep: Keep, path: str, more: Grown | None = None) -> None:
        self.root, self.keep, self.path = root, keep, path
        self.module = root.get_submodule(path)
        captured = keep.graph.detail.captured
        self.captured = captured
        self.calls = captured.calls.calls
        numbers = captured.calls.of(path) if path else [ROOT]
        if len(numbers) != 1:
            raise CannotEmit(f"it runs {len(numbers)} times in a forward pass")
        self.number = numbers[0]
        self.call: Call = self.calls[self.number] if path else root_call(captured)
        self.signature = Signature(self.module, self.call)
        self.env: dict[str, Any] = {}  # node name -> expression, list of them, or Piece
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.results: dict[int, str] = {}
        self.anchor = next(iter(self.signature.leaves.values()), "next(self.parameters())")
        self.more: Grown = more or {}  # the trace with one image more
        self.sizes = Sizes((), batches(captured), more is not None)

    # -- segment ---------------------------------------------------------------------------------------------------

    def _mark_of(self, node: Node) -> tuple[int, int] | None:
        if node.op == "call_function" and op_name(node) == MARK:
            return int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
        return None

    def segment(self) -> list[Node]:
        """The nodes that ran between the module's first and last mark."""
        nodes = [n for n in self.captured.nodes if n.op == "call_function"]
        if self.number == ROOT:
            return nodes
        mine = [i for i, n in enumerate(nodes) if (m := self._mark_of(n)) is not None and m[0] == self.number]
        inside = [i for i, n in enumerate(nodes) if self.path in _paths(n)]
        if not mine:
            raise CannotEmit("it takes and returns no tensor")
        return nodes[min([*mine, *inside]) : max(mine) + 1]

    # -- writing ---------------------------------------------------------------------------------------------------

    def source(self) -> str:
        """The function's source; fills `constants` with what it refers to."""
        nodes = self.segment()
        if self.number == ROOT:
            self._root_arguments()
        i = 0
        while i < len(nodes):
            i = self._step(nodes, i)
        if self.number == ROOT:
            self._root_results()
        returned = construct(self.call.result, self.results, self.constants)
        head = [f"def forward({self.signature.parameters}):"]
        for name in self.signature.guards:
            head.append(f"    if {name} is not None:")
            head.append(
                f"        raise ValueError('{name} is not supported by the pruned {self.path or 'model'}: it was traced "
                f"without; trace with an example that has it')"
            )
        return "\n".join([*head, *(f"    {line}" for line in self.lines), f"    return {returned}", ""])

    def _step(self, nodes: list[Node], i: int) -> int:
        node = nodes[i]
        mark = self._mark_of(node)
        if mark is not None and mark[0] == self.number:
            if mark[1] < self.call.inputs:
                self.env[node.name] = self.signature.leaves[mark[1]]
                self._add_anchors(node, self.signature.leaves[mark[1]])
            else:
                self.results[mark[1]] = self._tensor(node.args[0])
            return i + 1
        if mark is not None:
            done = self._child_call(nodes, i, mark[0])
            if done:
                return done
            self.env[node.name] = self.env.get(node.args[0].name)  # type: ignore[union-attr]
            return i + 1
        child = module_path(node)
        if child != self.path and self._leaf_call(node, child):
            return i + 1
        self._operator(node)
        return i + 1

    def _root_arguments(self) -> None:
        """The model's own inputs: they have no marks."""
        for number, node in root_inputs(self.captured).items():
            self.env[node.name] = self.signature.leaves[number]
            self._add_anchors(node, self.signature.leaves[number])

    def _root_results(self) -> None:
        by_name = {n.name: n for n in self.captured.nodes}
        for number, name in root_outputs(self.captured).items():
            self.results[self.call.inputs + number] = self._tensor(by_name[name])

    def _add_anchors(self, node: Node, expression: str) -> None:
        """Sizes of an argument that others can be read off: those of its axes that are not pruned."""
        value = self.keep.value(node.name)
        if value is None:
            return
        larger = self._larger(node)
        axes = [
            Size(f"{expression}.size({d})", n, larger[d] if larger else None)
            for d, n in enumerate(value.shape)
            if n > 1 and not value.on(d)
        ]
        self.sizes = replace(self.sizes, anchors=(*self.sizes.anchors, *axes))

    def _larger(self, node: Node) -> tuple[int, ...]:
        """The node's dense shape with one image more, () if that is not known."""
        return shape_of(self.more[node.name]) if node.name in self.more else ()

    def _grown(self, source: Node, out: Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        if out.name not in self.more:
            return None
        larger = self._larger(source)
        if not larger:  # a parameter or buffer
            value = self.keep.value(source.name)
            larger = value.shape if value is not None else ()
        return larger, self._larger(out)

    def _child_call(self, nodes: list[Node], i: int, number: int) -> int:
        """Emit a call of a composite child; the index after its last node, or 0 if its nodes must be inlined."""
        call = self.calls[number]
        prefix = f"{self.path}." if self.path else ""
        if not call.path.startswith(prefix):
            return 0
        ends = [j for j in range(i, len(nodes)) if (m := self._mark_of(nodes[j])) is not None and m[0] == number]
        leaves: dict[int, str] = {}
        outputs: list[tuple[Node, int]] = []
        for j in ends:
            _, leaf = self._mark_of(nodes[j]) or (0, 0)
            if leaf < call.inputs:
                source = nodes[j].args[0]
                assert isinstance(source, Node)
                if source.op == "call_function" and source.name not in self.env:
                    return 0
                leaves[leaf] = self._tensor(source)
            else:
                outputs.append((nodes[j], leaf))
        if len(leaves) != call.inputs or not outputs:
            return 0
        try:
            args = [construct(a, leaves, self.constants) for a in call.args]
            args += [f"{k}={construct(v, leaves, self.constants)}" for k, v in call.kwargs.items()]
        except CannotEmit:
            return 0
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name} = {attribute_path(call.path[len(prefix) :])}({', '.join(args)})")
        picks: dict[int, str] = {}
        destructure(call.result, name, picks)
        for node, leaf in outputs:
            self.env[node.name] = picks[leaf]
        return ends[-1] + 1

    def _leaf_call(self, node: Node, child: str) -> bool:
        """Emit a call of an elementary layer that ran as the one operator `node`."""
        prefix = f"{self.path}." if self.path else ""
        if not child.startswith(prefix):
            return False
        module = self.root.get_submodule(child)
        if self.captured.calls.of(child) or any(True for _ in module.children()):
            return False
        inputs = [a for a in node.args if isinstance(a, Node) and a.op != "placeholder"]
        inputs += [a for a in node.args if isinstance(a, Node) and a.name in self.captured.inputs]
        same = [n for n in self.captured.nodes if n.op == "call_function" and module_path(n) == child]
        if len(inputs) != 1 or len(same) != 1 or op_name(node) in VIEWS or node.kwargs:
            return False
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {attribute_path(child[len(prefix) :])}({self._tensor(inputs[0])})")
        self.env[node.name] = name
        return True

    def _tensor(self, node: Any) -> str:
        """The expression of a tensor argument."""
        assert isinstance(node, Node)
        if node.op == "placeholder" and node.name not in self.env:
            return self._placeholder(node)
        found = self.env.get(node.name)
        if isinstance(found, (pieces.Piece, pieces.Stack)):
            raise CannotEmit(f"unequal parts that {op_name(node)} hands on")
        if not isinstance(found, str):
            raise CannotEmit(f"it reads {node.name}, which is made elsewhere")
        return found

    def _placeholder(self, node: Node) -> str:
        name = self.captured.tensors.get(node.name)
        prefix = f"{self.path}." if self.path else ""
        if name is not None and name.startswith(prefix):
            return attribute_path(name[len(prefix) :])
        if name is not None:
            for alias, tensor in [*self.module.named_parameters(remove_duplicate=False), *self.module.named_buffers()]:
                if tensor is _attribute(self.root, name):
                    return attribute_path(alias)
        if node.name in self.captured.constants:
            target = self.captured.program.graph_signature.inputs_to_lifted_tensor_constants.get(node.name)
            value = self.captured.program.constants.get(target)
            if isinstance(value, torch.Tensor):
                key = f"_tensor{len(self.constants)}"
                self.constants[key] = value.detach().clone()
                return f"{key}.to({self.anchor}.device)"
        raise CannotEmit(f"it reads {name or node.name}, which it does not own")

    def _argument(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._tensor(value)
        if isinstance(value, (list, tuple)):
            inner = ", ".join(self._argument(v) for v in value)
            return f"[{inner}]"
        if isinstance(value, torch.device):
            return f"{self.anchor}.device"
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return str(value)
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return f"float('{value}')"
        return repr(value)

    def _operator(self, node: Node) -> None:
        name = op_name(node)
        if name in SKIPPED:
            return
        if node.target is operator.getitem:
            source = self.env[node.args[0].name]  # type: ignore[union-attr]
            self.env[node.name] = source[node.args[1]] if isinstance(source, list) else f"{source}[{node.args[1]}]"
            self._settle(node)
            return
        first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        known = self.env.get(first.name) if first is not None else None
        if isinstance(known, (pieces.Piece, pieces.Stack)):
            self.env[node.name] = self._piece(node, name, known)
            self._settle(node)
            return
        value = self.keep.value(node.name)
        if name in VIEWS and value is not None and is_ragged(self.keep, value):
            source_value = self.keep.value(first.name) if first is not None else None
            assert source_value is not None and first is not None
            expression = self._tensor(first)
            piece, rest, origin = pieces.start(self.keep, expression, source_value, value.shape)
            if rest is not None:
                name = f"t{len(self.lines)}"
                larger = self._grown(first, node)
                if larger is not None:
                    larger = larger[0], tuple(larger[side][d] for side, d in origin)
                sizes = view_sizes(self.keep, self.sizes, expression, source_value, rest, larger)
                self.lines.append(f"{name} = {expression}.reshape({sizes})")
                piece = replace(piece, base=name)
            self.env[node.name] = piece
            return
        self._plain(node, name)

    def _plain(self, node: Node, name: str) -> None:
        args = [self._argument(a) for a in node.args]
        kwargs = {k: self._argument(v) for k, v in node.kwargs.items()}
        target = f"torch.ops.{node.target}"
        try:
            changes = literals(self.keep, node)
        except Ragged as error:
            raise CannotEmit(f"unequal parts in {name}") from error
        for change in changes:
            if isinstance(change.position, int):
                while len(args) <= change.position:
                    args.append("None")
                args[change.position] = repr(change.new)
            else:
                kwargs[change.position] = repr(change.new)
            if isinstance(change.new, list) and not isinstance(change.old, list):
                target = "torch.ops.aten.split_with_sizes.default"
        value = self.keep.value(node.name)
        source = self.keep.value(node.args[0].name) if node.args and isinstance(node.args[0], Node) else None
        if name in VIEWS and value is not None and source is not None:
            target = "torch.ops.aten.reshape.default"
            larger = self._grown(node.args[0], node)  # type: ignore[arg-type]
            args = [args[0], view_sizes(self.keep, self.sizes, args[0], source, value, larger)]
            kwargs = {}
        elif name in ("expand", "broadcast_to") and value is not None and source is not None:
            larger = self._grown(node.args[0], node)  # type: ignore[arg-type]
            args[1] = expand_sizes(self.keep, self.sizes, source, value, larger)
        elif name in (SIZED | CREATED) and value is not None:
            args[0 if name in CREATED else 1] = new_sizes(self.keep, self.sizes, value, self._larger(node) or None)
        elif name in COUNTED:
            for position in COUNTED[name]:
                if position < len(node.args):
                    new = next((c.new for c in changes if c.position == position), node.args[position])
                    larger_node = self.more.get(node.name)
                    args[position] = self._count(
                        new, node.args[position], larger_node.args[position] if larger_node is not None else None
                    )
        elif name == "scaled_dot_product_attention":
            args, kwargs = self._causal(*self._dropout(args, kwargs))
        elif name == "dropout":
            args[2] = "self.training"
        text = ", ".join([*args, *(f"{k}={v}" for k, v in kwargs.items())])
        result = f"t{len(self.lines)}"
        optional = [a for a in args[1:] if a.isidentifier() and a in self.signature.leaves.values()]
        if name == "add" and optional:  # a mask that callers may leave out when they do not trace
            self.lines.append(f"{result} = {args[0]} if {optional[0]} is None else {target}({text})")
        else:
            self.lines.append(f"{result} = {target}({text})")
        self.env[node.name] = result

    def _count(self, new: Any, dense: Any, larger: Any) -> str:
        """A whole number, or a list of them, that may grow with the batch."""
        if isinstance(new, (list, tuple)) and isinstance(dense, (list, tuple)) and len(new) == len(dense):
            others = larger if isinstance(larger, (list, tuple)) and len(larger) == len(dense) else [None] * len(dense)
            return "[" + ", ".join(self._count(*t) for t in zip(new, dense, others, strict=True)) + "]"
        if type(new) is int and type(dense) is int and 1 < dense < 2**31:
            return self.sizes.settle(new, dense, larger if type(larger) is int else None, None, False)
        return self._argument(new)

    def _dropout(self, args: list[str], kwargs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """Attention dropout in training, where the module has a rate for it that eval mode did not show."""
        rate = None
        for child_name, child in self.module.named_children():
            used = any(module_path(n) == f"{self.path}.{child_name}" for n in self.captured.nodes)
            if isinstance(child, nn.Dropout) and child.p > 0 and not used:
                rate = f"self.{child_name}.p"
        for key, value in vars(self.module).items():
            if rate is None and "drop" in key and isinstance(value, float) and value > 0:
                rate = f"self.{key}"
        if rate is None:
            return args, kwargs
        while len(args) < 4:
            args.append("None")
        return [*args[:4], f"{rate} if self.training else 0.0", *args[5:]], kwargs

    def _causal(self, args: list[str], kwargs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """A mask that was traced but that callers may leave out, because they ask for a causal one by a flag."""
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask", "")
        if mask not in self.signature.names or len(args) > 5 or "is_causal" in kwargs:
            return args, kwargs
        if "is_causal" in self.signature.names:
            flag = "bool(is_causal)"
        elif self.signature.extra and "is_causal" in self.call.kwargs:
            flag = f"bool({self.signature.extra}.get('is_causal'))"
        elif isinstance(getattr(self.module, "is_causal", None), bool):
            flag = "self.is_causal"
        else:
            return args, kwargs
        return args, {**kwargs, "is_causal": f"{mask} is None and {flag}"}

    def _piece(self, node: Node, name: str, piece: pieces.Piece | pieces.Stack) -> Any:
        if name in ALIKE:
            return piece
        if isinstance(piece, pieces.Stack):
            return self._stack(node, name, piece)
        rank = len(piece.axes)
        if name in ("permute", "transpose"):
            return pieces.permuted(piece, _order(node, name, rank))
        if name in VIEWS:
            before, after = self.keep.value(node.args[0].name), self.keep.value(node.name)  # type: ignore[union-attr]
            if before is None or after is None:
                raise CannotEmit("a reshape of one of several results")
            try:
                return pieces.reshaped(piece, before.shape, after.shape)
            except CannotEmit:
                axis = pieces.stackable(self.keep, piece, before)
                if axis is None:
                    raise
                return self._stack(node, name, self._stacked(piece, before, axis))
        if name in ("chunk", "split", "split_with_sizes"):
            dim = int(node.args[2]) if len(node.args) > 2 else 0  # type: ignore[arg-type]
            parts = self.keep.graph.detail.propagated.values[node.name]
            out, begin = [], 0
            for k, part in enumerate(parts):
                size = part.shape[dim % rank]
                out.append(self._try(pieces.sliced(piece, dim, slice(begin, begin + size)), node, k))
                begin += size
            return out
        if name not in ("select", "unbind"):
            raise CannotEmit(f"unequal parts read by {name}")
        dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        if name == "select":
            return pieces.picked(piece, dim, int(node.args[2]))  # type: ignore[arg-type]
        kind, j = piece.axes[dim % rank]
        count = piece.ids.shape[j] if kind == "part" else 0
        return [self._try(pieces.picked(piece, dim, k), node, k) for k in range(count)]

    def _stacked(self, piece: pieces.Piece, value: Value, axis: int) -> pieces.Stack:
        values = tuple(pieces.slice_value(value, axis, k) for k in range(value.shape[axis]))
        parts = tuple(self._settled(pieces.picked(piece, axis, k), v) for k, v in enumerate(values))
        return pieces.Stack(axis, parts, values)

    def _stack(self, node: Node, name: str, stack: pieces.Stack) -> Any:
        """An operator on a tensor whose slices along one axis are kept apart."""
        source = node.args[0]
        assert isinstance(source, Node)
        before, after = self.keep.value(source.name), self.keep.value(node.name)
        if before is not None and name in ("select", "unbind"):
            dim = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
            if dim % len(before.shape) == stack.axis:
                return list(stack.parts) if name == "unbind" else stack.parts[int(node.args[2])]  # type: ignore[arg-type]
        if before is None or after is None or name not in {"permute", "transpose", *VIEWS}:
            raise CannotEmit(f"unequal parts read by {name}")
        if name in VIEWS:
            axis = pieces.stack_axis_after(stack.axis, before.shape, after.shape)
            larger = self._grown(source, node)
            if larger is not None:
                larger = _without(larger[0], stack.axis), _without(larger[1], axis)
        else:
            axis, order = pieces.stack_permuted(_order(node, name, len(before.shape)), stack.axis)
        values = tuple(pieces.slice_value(after, axis, k) for k in range(after.shape[axis]))
        parts = []
        for part, old, new in zip(stack.parts, stack.values, values, strict=True):
            parts.append(f"t{len(self.lines)}")
            if name in VIEWS:
                made = f"{part}.reshape({view_sizes(self.keep, self.sizes, part, old, new, larger)})"
            else:
                made = f"{part}.permute({order})"
            self.lines.append(f"{parts[-1]} = {made}")
        return pieces.Stack(axis, tuple(parts), values)

    def _try(self, piece: pieces.Piece, node: Node, part: int) -> Any:
        value = self.keep.value(node.name, part)
        return self._settled(piece, value)

    def _settled(self, piece: Any, value: Any) -> Any:
        """The piece as a tensor, as soon as it is rectangular."""
        if not isinstance(piece, pieces.Piece) or value is None or is_ragged(self.keep, value):
            return piece
        sizes = [s or 0 for s in self.keep.shape(value)]
        (expression,) = pieces.materialise(piece, sizes, self.constants)
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def _settle(self, node: Node) -> None:
        self.env[node.name] = self._settled(self.env[node.name], self.keep.value(node.name))


def _order(node: Node, name: str, rank: int) -> list[int]:
    """The order of axes that a permute or transpose makes."""
    if name == "permute":
        return [int(o) % rank for o in node.args[1]]  # type: ignore[union-attr]
    order = list(range(rank))
    a, b = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
    order[a], order[b] = order[b], order[a]
    return order


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return tuple(n for d, n in enumerate(shape) if d != axis)


def _paths(node: Node) -> set[str]:
    return {str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()}


def _attribute(root: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(owner), leaf, None)


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
    file = f"<vitprune {type(emitter.module).__name__} at {path} {id(small)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope: dict[str, Any] = {"torch": torch, "device": torch.device, **emitter.constants}
    exec(compile(source, file, "exec"), scope)  # noqa: S102 - source written above from the trace, no user text
    target = small.get_submodule(path)
    target.forward = types.MethodType(scope["forward"], target)  # type: ignore[method-assign]
    return source
