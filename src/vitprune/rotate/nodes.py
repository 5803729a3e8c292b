"""What the two searches share: which operators move elements only, and which nodes hold a group's labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.fx import Node

from vitprune.trace.capture import module_path, op_name
from vitprune.trace.graph import Graph, Group
from vitprune.trace.labels import Array
from vitprune.trace.rules import SAME
from vitprune.trace.value import Value

# fmt: off
MOVES = frozenset(SAME) | frozenset([
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "view_as", "permute", "transpose", "swapaxes",
    "t", "numpy_T", "movedim", "moveaxis", "unsqueeze", "expand", "expand_as", "broadcast_to", "select", "unbind",
    "slice", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "cat", "concat", "concatenate", "roll",
    "pad", "constant_pad_nd", "index", "index_select", "gather", "reshape_as", "getitem",
])
# fmt: on


class Refused(Exception):
    """Why a group's basis cannot be changed."""


class Touch:
    """Whether a node holds labels of one group."""

    def __init__(self, graph: Graph, group: Group) -> None:
        detail = graph.detail
        self.values = detail.propagated.values
        number = [g.name for g in detail.units.groups].index(group.name)
        self.mine = detail.units.group[detail.solved.cls] == number  # per label

    def __call__(self, node: Any) -> bool:
        return isinstance(node, Node) and any(bool(np.any(self.mine[f[f >= 0]])) for f in self.arrays(node))

    def of(self, node: Node) -> list[Value]:
        """The values of a node."""
        value = self.values.get(node.name)
        return [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value)]

    def arrays(self, node: Node) -> Iterator[Array]:
        """All labels of a node."""
        return (f.array for v in self.of(node) for f in v.fields)

    def depends(self, node: Node) -> bool:
        """Whether a node depends on the model's input."""
        return any(v.depends for v in self.of(node))


def grouped(node: Node) -> bool:
    """Whether a layer is a convolution whose outputs read only some of its inputs."""
    return op_name(node) != "linear" and len(node.args) > 6 and bool(node.args[6] != 1)


def where(node: Node) -> str:
    """The operator and the module that it runs in."""
    return f"{op_name(node)} in {module_path(node) or 'the model'}"
