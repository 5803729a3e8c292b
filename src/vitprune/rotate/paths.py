"""Between which weights a head's dims live: found from the labels of the trace, or refused with the reason."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from vitprune.rotate.nodes import MOVES, Refused, Touch, grouped, where
from vitprune.trace.capture import op_name
from vitprune.trace.graph import Graph, Group, IndexArray
from vitprune.trace.labels import Array
from vitprune.trace.value import Value

PRODUCTS = frozenset(["matmul", "bmm", "baddbmm", "einsum"])
LAYERS = frozenset(["linear", "conv1d", "conv2d", "conv3d"])
ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """Positions along one dim of one tensor: (lanes, size, k)."""

    tensor: str
    dim: int
    index: IndexArray


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One factor of the product: the layers that make it (or, for the output side of v, read it)."""

    weights: tuple[Slices, ...]
    biases: tuple[Slices, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The two sides of a group: queries and keys, or the layers that make v and the one that reads what it gives."""

    group: Group
    left: Side
    right: Side


def find_path(graph: Graph, group: Group) -> Path | str:
    """The two sides between which the group's dims live, or why their basis cannot be changed."""
    if group.kind not in ("qk", "v"):
        return "not the dims of a head"
    try:
        return _Finder(graph, group).path()
    except Refused as reason:
        return str(reason)


def find_queries(graph: Graph, group: Group) -> Side | None:
    """The rows of the layers that make a q/k group's queries, whatever stands behind them (rotary embeddings, norms).

    None where the labels at the product do not lead to layers.
    """
    finder = _Finder(graph, group)
    for node in graph.detail.captured.nodes:
        if node.op == "call_function" and (finder.touch(node) or any(map(finder.touch, node.all_input_nodes))):
            op = op_name(node)
            if op in LAYERS and finder.touch(node):
                finder.makers.append(node)
            elif (op == ATTENTION or op in PRODUCTS) and sum(map(finder.touch, finder._arguments(node)[:2])) == 2:
                finder.products.append(node)
    try:
        return finder._made([finder._operands(n)[0] for n in finder.products]) if finder.products else None
    except Refused:
        return None


class _Finder:
    """The nodes that touch one group, sorted by what they do with it."""

    def __init__(self, graph: Graph, group: Group) -> None:
        self.graph, self.group, detail = graph, group, graph.detail
        self.values: Mapping[str, Any] = detail.propagated.values
        self.tensors = detail.propagated.tensors
        self.cls, units = detail.solved.cls, detail.units
        self.touch = Touch(graph, group)
        self.mine = self.touch.mine
        self.lane, self.unit = units.lane, units.unit
        self.place = {}
        for name, lines in self.tensors.items():
            for dim, line in enumerate(lines):
                if line is not None:
                    self.place[int(line[0])] = (name, dim, line)
        self.starts = np.asarray(sorted(self.place), dtype=np.int64)
        self.makers: list[Node] = []
        self.readers: list[Node] = []
        self.products: list[Node] = []

    def path(self) -> Path:
        for node in self.graph.detail.captured.nodes:
            if node.op == "call_function":
                self._classify(node)
        if not self.products:
            raise Refused("no product of attention was found")
        operands = [self._operands(n) for n in self.products]
        if self.group.kind == "qk":
            left = self._made([a for a, _ in operands])
            right = self._made([b for _, b in operands])
        else:
            left = self._made([b for _, b in operands])
            right = Side(tuple(self._read(n) for n in self.readers))
            if not self.readers:
                raise Refused("no linear layer reads what attention gives")
        seen = {(s.tensor, s.dim) for side in (left, right) for s in (*side.weights, *side.biases)}
        rest = [m for m in self.group.members if (m.tensor, m.dim) not in seen]
        if rest:
            raise Refused(f"{rest[0].tensor} holds a value for every dim")
        return Path(self.group, left, right)

    def _classify(self, node: Node) -> None:
        op = op_name(node)
        if not self.touch(node) and not any(self.touch(n) for n in node.all_input_nodes):
            return
        if op in LAYERS:
            weight = node.args[1]
            first = node.args[0]
            reads, makes = isinstance(first, Node) and self.touch(first), self.touch(node)
            given = isinstance(weight, Node) and (weight.op == "placeholder" or (makes and op_name(weight) in MOVES))
            if not given or (reads and makes) or grouped(node):
                raise Refused(f"{where(node)} stands between")
            if reads and self.group.kind == "qk":
                raise Refused(f"{where(node)} reads queries or keys")
            (self.readers if reads else self.makers).append(node)
        elif op == ATTENTION or op in PRODUCTS:
            self._product(node)
        elif (
            op in MOVES
            or node.target is operator.getitem
            or (op in ("mul", "div", "mul_", "div_") and self._by_scalar(node))
        ):
            return
        else:
            raise Refused(f"{where(node)} stands between")

    def _product(self, node: Node) -> None:
        a, b = self._operands(node)
        summed = not self.touch(node)
        if self.group.kind == "qk":
            if op_name(node) == ATTENTION:
                good = self.touch(a) and self.touch(b)
            else:
                good = summed and self.touch(a) and self.touch(b) and self.touch.depends(a) and self.touch.depends(b)
        else:
            good = self.touch(b) and not self.touch(a) and not summed
        if not good or (len(self._arguments(node)) > 2 and any(self.touch(n) for n in self._arguments(node)[3:])):
            raise Refused(f"{where(node)} uses the dims otherwise")
        self.products.append(node)

    def _arguments(self, node: Node) -> list[Node]:
        flat: list[Node] = []
        for arg in node.args:
            flat += [x for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(x, Node)]
        return flat

    def _operands(self, node: Node) -> tuple[Node, Node]:
        """Query and key, or probabilities and value."""
        flat = self._arguments(node)
        if op_name(node) == ATTENTION:
            return (flat[0], flat[1]) if self.group.kind == "qk" else (flat[0], flat[2])
        two = flat[1:3] if op_name(node) == "baddbmm" else flat[:2]
        if len(two) < 2:
            raise Refused(f"{where(node)} has one operand")
        a, b = two
        if self.group.kind == "v" and self.touch(a):
            return b, a
        return a, b

    def _by_scalar(self, node: Node) -> bool:
        others = [n for n in node.all_input_nodes if not self.touch(n)]
        return all(
            isinstance(v := self.values.get(n.name), Value) and not v.fields and _single(v) for n in others
        ) and (len(node.all_input_nodes) - len(others) == 1)

    def _made(self, operands: list[Node]) -> Side:
        """The rows of the layers that make the operands, and what is added to them."""
        labels = np.unique(np.concatenate([f.ravel() for n in operands for f in self.touch.arrays(n)]))
        labels = labels[labels >= 0]
        labels = labels[self.mine[labels]]
        rows = self._slices(labels)
        weights = {s.tensor for s in rows}
        makers: set[str] = set()
        biases: list[Array] = []
        for node in self.makers:
            line = self._line(node.args[1])
            makers |= {s.tensor for s in self._slices(line[np.isin(line, labels)])}
            bias = node.args[2] if len(node.args) > 2 else None
            value = self.values.get(bias.name) if isinstance(bias, Node) else None
            if not isinstance(value, Value) or not value.fields:
                continue
            chosen = value.on(0)[-1].array.ravel()[np.isin(line, labels)]
            if (chosen < 0).any():
                raise Refused("a bias has positions without labels")
            biases.append(chosen)
        held = self._slices(np.unique(np.concatenate(biases))) if biases else ()
        if any(s.dim != 0 for s in (*rows, *held)):
            raise Refused("an operand comes from no layer's output")
        if not weights <= makers:
            raise Refused("an operand is a parameter itself")
        return Side(rows, held)

    def _line(self, weight: Any) -> Array:
        """Labels of the rows of a layer's weight."""
        value = self.values.get(weight.name)
        along = value.on(0) if isinstance(value, Value) else ()
        if not along:
            raise Refused("a layer's weight is computed")
        return along[-1].array.take([0], axis=1).ravel()

    def _read(self, node: Node) -> Slices:
        weight = node.args[1]
        assert isinstance(weight, Node)
        line = self.tensors[self.graph.detail.captured.tensors[weight.name]][1]
        assert line is not None
        (found,) = self._slices(line[self.mine[line]])
        return found

    def _slices(self, labels: Array) -> tuple[Slices, ...]:
        """The tensors' positions behind labels, by lane and unit."""
        home = np.searchsorted(self.starts, labels, side="right") - 1
        found: list[Slices] = []
        for h in np.unique(home).tolist():
            name, dim, line = self.place[int(self.starts[h])]
            mine = labels[home == h]
            at = np.searchsorted(line, mine)
            cls = self.cls[mine]
            order = np.lexsort((at, self.unit[cls], self.lane[cls]))
            per = len(at) // (self.group.lanes * self.group.size)
            if per * self.group.lanes * self.group.size != len(at):
                raise Refused(f"{name} holds some of the dims alone")
            found.append(Slices(name, dim, at[order].reshape(self.group.lanes, self.group.size, per)))
        return tuple(found)


def _single(value: Value) -> bool:
    return math.prod(value.shape) == 1
