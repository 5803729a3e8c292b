"""The state of one walk over the operators, and the costs noted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vitprune.trace.labels import Array, Labels
from vitprune.trace.value import Value


@dataclass(frozen=True, slots=True, eq=False)
class AxisSize:
    """The size of one axis: how many positions, and the labels of each (several levels, coarse to fine)."""

    size: int
    labels: tuple[Array, ...] = ()  # 1-D arrays of length `size`


@dataclass(frozen=True, slots=True, eq=False)
class NotedCost:
    """Multiply-accumulates of one operator: the product of its axes."""

    node: str
    module: str
    op: str
    axes: tuple[AxisSize, ...]
    depends: bool  # on the input, hence proportional to the batch


@dataclass(slots=True)
class Walk:
    """Labels, costs, and where the walk stands."""

    labels: Labels = field(default_factory=Labels)
    costs: list[NotedCost] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)  # operator -> module where it was met first
    batches: frozenset[int] = frozenset()  # sizes of the first axes of the example's tensors
    node: str = ""
    module: str = ""
    op: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()  # of the results of the operator at hand

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the single result."""
        return self.shapes[0]

    def note_cost(self, axes: Sequence[AxisSize], depends: bool) -> None:
        """Remember that the operator at hand costs the product of `axes` in multiply-accumulates."""
        self.costs.append(NotedCost(self.node, self.module, self.op, tuple(axes), depends))


def axis_size(value: Value, dim: int) -> AxisSize:
    """The size of one axis of a tensor, at the first position of every other axis."""
    dim %= len(value.shape)
    size = value.shape[dim]
    lines = []
    for f in value.on(dim):
        line = f.array[tuple(slice(None) if d == dim else 0 for d in range(f.array.ndim))]
        lines.append(np.broadcast_to(line, (size,)))
    return AxisSize(size, tuple(lines))


def all_sizes(value: Value) -> list[AxisSize]:
    """The sizes of all axes."""
    return [axis_size(value, d) for d in range(len(value.shape))]
