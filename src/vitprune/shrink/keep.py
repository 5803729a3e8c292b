"""A plan in terms of labels: what is kept of every axis of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitprune.plan import Plan
from vitprune.trace.graph import Graph, Group
from vitprune.trace.labels import Array
from vitprune.trace.value import Value

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Keep:
    """Which labels stay; the last entry stands for NONE (index -1), which always stays."""

    labels: Mask
    graph: Graph
    removed_blocks: tuple[Group, ...] = ()  # branches that go altogether

    def along(self, line: Array) -> Mask:
        """Which positions of a line of labels stay."""
        return self.labels[line]

    def tensor(self, name: str) -> tuple[Array | None, ...]:
        """Per dim of a parameter or buffer the kept positions; None where all are."""
        lines = self.graph.detail.propagated.tensors.get(name, ())
        out: list[Array | None] = []
        for line in lines:
            kept = None if line is None else self.along(line)
            out.append(None if kept is None or kept.all() else np.flatnonzero(kept))
        return tuple(out)

    def value(self, node: str, part: int | None = None) -> Value | None:
        """The traced value of a node (or of one of its results)."""
        value = self.graph.detail.propagated.values.get(node)
        if isinstance(value, tuple):
            value = value[part] if part is not None else None
        return value if isinstance(value, Value) else None

    def mask(self, value: Value, dim: int) -> Mask | None:
        """Which positions along `dim` stay, shaped to broadcast against the tensor; None where all do."""
        fields = value.on(dim)
        if not fields:
            return None
        mask = self.labels[fields[0].array]
        for f in fields[1:]:
            mask = mask & self.labels[f.array]
        return None if mask.all() else mask

    def size(self, value: Value, dim: int) -> int | None:
        """Size of one axis after pruning; None where it is not the same at every kept position of the others."""
        dim %= max(1, len(value.shape))
        mask = self.mask(value, dim)
        if mask is None:
            return value.shape[dim]
        mask = np.broadcast_to(mask, [value.shape[dim] if d == dim else n for d, n in enumerate(mask.shape)])
        counts = mask.sum(axis=dim, keepdims=True)
        for d, n in enumerate(counts.shape):
            other = self.mask(value, d) if n > 1 and d != dim else None
            if other is not None:
                counts = np.where(other, counts, 0)
        sizes = np.unique(counts[counts > 0])
        return int(sizes[0]) if len(sizes) == 1 else (0 if len(sizes) == 0 else None)

    def shape(self, value: Value) -> tuple[int | None, ...]:
        """Shape after pruning."""
        return tuple(self.size(value, d) for d in range(len(value.shape)))


def keep_from(graph: Graph, plan: Plan) -> Keep:
    """The labels that stay under `plan`; groups that it does not name stay whole."""
    detail = graph.detail
    assert detail is not None, "a graph made by hand cannot be shrunk"
    units, solved = detail.units, detail.solved
    classes = np.ones(len(units.group) + 1, dtype=bool)
    for number, group in enumerate(units.groups):
        choice = plan.groups.get(group.name)
        if choice is None or group.kind == "block":
            continue
        table = np.zeros((group.lanes, group.size), dtype=bool)
        for lane, kept in enumerate(choice.kept):
            table[lane, list(kept)] = True
        mine = np.flatnonzero(units.group == number)
        classes[mine] = table[units.lane[mine], units.unit[mine]]
    labels = np.ones(len(solved.cls) + 1, dtype=bool)
    labels[:-1] = classes[solved.cls]
    covered = np.ones(len(solved.covers.start) - 1, dtype=bool)
    covered[solved.covers.rows()[~classes[solved.covers.classes]]] = False
    labels[:-1] &= covered[solved.own]
    gone = [g for g in graph.groups if g.kind == "block" and g.name in plan.groups and not plan.groups[g.name].kept[0]]
    return Keep(labels, graph, tuple(gone))


def flat_values(value: Any) -> Sequence[Value]:
    """The Value or Values of a node."""
    return [value] if isinstance(value, Value) else [v for v in value or () if isinstance(v, Value)]
