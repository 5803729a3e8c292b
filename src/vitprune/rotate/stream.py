"""What writes to a residual stream, normalises it and reads it: found from the trace, or refused with the reason."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from vitprune.rotate.nodes import MOVES, Refused, Touch, grouped, where
from vitprune.trace.capture import op_name
from vitprune.trace.graph import Graph, Group

MEANS = frozenset(["mean", "sum"])
CHANNELWISE = frozenset([  # the same linear map of every channel
    "add", "add_", "stack", "embedding", "new_zeros", "zeros_like", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "avg_pool1d", "avg_pool2d", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
    "_upsample_bicubic2d_aa", "upsample_linear1d",
])  # fmt: skip
NORMS = frozenset(["layer_norm", "rms_norm"])


@dataclass(frozen=True, slots=True)
class Norm:
    """One norm over the stream, and the linear layers that read what it gives."""

    weight: str | None
    bias: str | None
    readers: tuple[tuple[str, str | None], ...]  # (weight, bias) of each


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A residual group whose basis can be changed."""

    group: Group
    norms: tuple[Norm, ...]
    scales: tuple[tuple[str, str, str | None], ...]  # (scale, weight, bias): a layer scale and the layer before it
    readers: tuple[str, ...]  # weights of all linear layers that read the stream or a norm of it
    centred: bool  # some norm takes the mean off: the basis must keep the vector of ones


def find_stream(graph: Graph, group: Group) -> Stream | str:
    """The stream behind a residual group, or why its basis cannot be changed."""
    try:
        return _Finder(graph, group).stream()
    except Refused as reason:
        return str(reason)


class _Finder:
    """The nodes that touch the stream."""

    def __init__(self, graph: Graph, group: Group) -> None:
        self.group = group
        self.touch = Touch(graph, group)
        self.names = graph.detail.captured.tensors
        self.nodes = [n for n in graph.detail.captured.nodes if n.op == "call_function"]
        self.makers: dict[str, Node] = {}
        self.readers: dict[str, list[Node]] = {}
        self.scales: list[tuple[str, Node]] = []
        self.used: set[str] = set()  # parameters that are accounted for

    def stream(self) -> Stream:
        norms: list[Node] = []
        for node in self.nodes:
            if any(self.touch(n) for n in node.all_input_nodes) or self.touch(node):
                self._classify(node, norms)
        found = tuple(self._norm(n) for n in norms)
        scales = tuple(self._scale(*s) for s in self.scales)
        rest = [m.tensor for m in self.group.members if m.tensor not in self.used]
        if rest:
            raise Refused(f"{rest[0]} holds a value for every channel")
        if any(m.index.shape[2] != 1 for m in self.group.members if m.tensor not in self.readers):
            raise Refused("a layer gives several positions of a channel at once")
        return Stream(self.group, found, scales, tuple(self.readers), any(op_name(n) == "layer_norm" for n in norms))

    def _classify(self, node: Node, norms: list[Node]) -> None:
        op = op_name(node)
        into = [n for n in node.all_input_nodes if self.touch(n)]
        if op in ("linear", "conv1d", "conv2d", "conv3d"):
            self._layer(node)
        elif op in NORMS:
            if not self.touch(node.args[0]) or list(node.args[1]) != [self.group.size]:  # type: ignore[arg-type]
                raise Refused(f"{where(node)} normalises other axes")
            norms.append(node)
        elif op in CHANNELWISE or op in MOVES or node.target is operator.getitem:
            self._parameters(into)
        elif op in MEANS:
            dims = node.args[1] if len(node.args) > 1 else None
            last = len(node.args[0].meta["val"].shape) - 1  # type: ignore[union-attr]
            if not isinstance(dims, (list, tuple)) or any(int(d) % (last + 1) == last for d in dims):
                raise Refused(f"{where(node)} goes over the channels")
        elif op in ("mul", "mul_"):
            self._mul(node)
        else:
            raise Refused(f"{where(node)} stands in the stream")

    def _parameters(self, nodes: list[Node]) -> None:
        self.used |= {name for n in nodes if n.op == "placeholder" and (name := self.names.get(n.name))}

    def _layer(self, node: Node) -> None:
        first, weight = node.args[0], node.args[1]
        bias = node.args[2] if len(node.args) > 2 else None
        reads, makes = self.touch(first), self.touch(node)
        while reads and isinstance(weight, Node) and weight.op != "placeholder" and op_name(weight) in MOVES:
            weight = weight.args[0]  # some rows of a parameter
        name = self.names.get(weight.name) if isinstance(weight, Node) else None
        if name is None or (reads and makes) or grouped(node):
            raise Refused(f"{where(node)} stands in the stream")
        if name in self.makers or (makes and name in self.readers):
            raise Refused(f"{name} is used in two places")
        if reads:
            self.readers.setdefault(name, []).append(node)
        else:
            self.makers[name] = node
        self.used.add(name)
        if isinstance(bias, Node) and self.touch(bias):
            if bias.op != "placeholder":
                raise Refused(f"the bias of {name} is computed")
            self._parameters([bias])

    def _mul(self, node: Node) -> None:
        """A layer scale: a parameter times what one layer gives."""
        two = [n for n in node.args if isinstance(n, Node)]
        gamma = next((n for n in two if n.op == "placeholder" and n.name in self.names), None)
        if gamma is None or len(two) != 2:
            raise Refused(f"{where(node)} stands in the stream")
        self._parameters([gamma])
        other = two[0] if two[1] is gamma else two[1]
        self.scales.append((self.names[gamma.name], other))

    def _scale(self, gamma: str, node: Node) -> tuple[str, str, str | None]:
        while node.op == "call_function" and op_name(node) in MOVES and len(node.users) == 1:
            (node,) = node.all_input_nodes[:1]
        for name, maker in self.makers.items():
            if maker is node and len(node.users) == 1:
                return gamma, name, self._bias(maker)
        raise Refused(f"{gamma} scales what no single layer gives")

    def _norm(self, node: Node) -> Norm:
        rms = op_name(node) == "rms_norm"
        given = [node.args[i] if len(node.args) > i else None for i in (2, 3)]
        affine = [a for a in (given[:1] if rms else given) if isinstance(a, Node)]
        if any(a.op != "placeholder" for a in affine):
            raise Refused(f"{where(node)} has a computed weight")
        self._parameters(affine)
        names = [self.names[a.name] for a in affine]
        readers: dict[str, str | None] = {}
        reached: set[Node] = set()
        pending, seen = list(node.users), set()
        while pending:
            user = pending.pop()
            if user in seen:
                continue
            seen.add(user)
            reader = next((n for n, same in self.readers.items() if user in same), None)
            if reader is not None:
                readers[reader] = self._bias(user) if op_name(user) == "linear" else None
                reached.add(user)
            elif op_name(user) in MEANS | MOVES | CHANNELWISE - {"add", "add_"} or user.target is operator.getitem:
                pending += list(user.users)
            elif user.op != "output" and self.touch(user):
                raise Refused(f"{where(user)} follows {where(node)}")
        if any(r not in reached for name in readers for r in self.readers[name]):
            raise Refused(f"a layer reads what {where(node)} gives, and something else")
        return Norm(names[0] if names else None, names[1] if len(names) > 1 else None, tuple(readers.items()))

    def _bias(self, layer: Node) -> str | None:
        bias: Any = layer.args[2] if len(layer.args) > 2 else None
        return self.names.get(bias.name) if isinstance(bias, Node) and bias.op == "placeholder" else None
