"""Where a mask multiplies: the slices of a group that alone silence its units.

A unit that is zero in all its slices gives no gradient to any of them, so a mask could never bring it back. It is
therefore put in one place on every way from the unit to the output. These are the input columns of the layers that
read the unit; the layers that make it go on making it. Query and key dims are read by no layer but by their product:
there it is the rows that make the queries, or the weights of the norm behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from vitprune.rotate.paths import find_queries
from vitprune.trace.graph import Graph, Group, IndexArray
from vitprune.trace.labels import Array


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """Positions along one dim of one parameter that a group's mask multiplies."""

    tensor: str
    dim: int
    index: IndexArray  # (lanes, size, k)


class Cuts:
    """The cut of every group of one graph."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
        labels = graph.detail.propagated.walk.labels
        self._read = np.zeros(labels.count, dtype=bool)
        for array in labels.summed:
            self._read[array[array >= 0]] = True

    def of(self, group: Group) -> tuple[Slices, ...]:
        """The slices that the group's mask multiplies; () where there are none that would do."""
        if group.kind == "block":
            return tuple(self._last_module(group))
        return self.readers(group) or (self._queries(group) if group.kind == "qk" else ())

    def everywhere(self, group: Group) -> tuple[Slices, ...]:
        """All slices of the group; once closed, such a mask opens again by the cost alone."""
        return self.of(group) if group.kind == "block" else tuple(self._slices(group))

    def readers(self, group: Group) -> tuple[Slices, ...]:
        """Input columns of the layers that read the group's units."""
        return tuple(s for s in self._slices(group) if self._read[self._labels(s)].all())

    def makers(self, group: Group) -> tuple[Slices, ...]:
        """Rows and biases of the linear layers and convolutions that make the group's units."""
        rows = [s for s in self._slices(group) if s.dim == 0 and len(self.shapes[s.tensor]) > 1]
        rows = [s for s in rows if s.tensor.endswith("weight") and not self._read[self._labels(s)].any()]
        owners = {s.tensor.rpartition(".")[0] for s in rows}
        biases = [s for s in self._slices(group) if s.tensor.rpartition(".")[0] in owners and s.tensor.endswith("bias")]
        return (*rows, *biases)

    def _slices(self, group: Group) -> Iterator[Slices]:
        for m in group.members:
            if m.tensor in self.shapes:
                yield Slices(m.tensor, m.dim, m.index)

    def _labels(self, slices: Slices) -> Array:
        line: Array = self.graph.detail.propagated.tensors[slices.tensor][slices.dim]
        return line[slices.index.ravel()]

    def _last_module(self, group: Group) -> Iterator[Slices]:
        path = group.modules[-1]
        for name, parameter in self.model.get_submodule(path).named_parameters():
            if parameter.ndim:
                yield Slices(f"{path}.{name}", 0, np.arange(len(parameter), dtype=np.int64)[None, None])

    def _queries(self, group: Group) -> tuple[Slices, ...]:
        """What makes the queries; where that is normed, the weights of the norm, the first of the two in the model."""
        side = find_queries(self.graph, group)
        rows = () if side is None else tuple(Slices(s.tensor, s.dim, s.index) for s in (*side.weights, *side.biases))
        layers = {s.tensor.rpartition(".")[0] for s in self._slices(group) if len(self.shapes[s.tensor]) > 1}
        behind = [s for s in self._slices(group) if s.tensor.rpartition(".")[0] not in layers]
        norm = next((s.tensor.rpartition(".")[0] for s in behind if s.tensor.endswith(".weight")), None)
        return rows if norm is None else tuple(s for s in behind if s.tensor.rpartition(".")[0] == norm)
