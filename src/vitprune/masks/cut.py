"""Where a mask multiplies: the slices of a group that alone silence its units.

A unit that is zero in all its slices gives no gradient to any of them, so a mask could never bring it back. It is
therefore put in one place on every way from the unit to the output. These are the input columns of the layers that read
the unit; the layers that make it go on making it. Query and key dims are read by no layer but by their product: there it
is the rows that make the queries, or the weights of the norm behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from vitprune.rotate.paths import Path, find_path
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
        path = find_path(self.graph, group)
        if isinstance(path, Path):
            side = (*path.left.weights, *path.left.biases)
            return tuple(Slices(s.tensor, s.dim, s.index) for s in side)
        return self._first_half(group)

    def _first_half(self, group: Group) -> tuple[Slices, ...]:
        """The query side where something stands between layer and product: what comes first in the model's order.

        A guess, which `check_` compares with the oracle: a norm's weights, else the first of two layers, else the first
        half of a fused one.
        """
        held = list(self._slices(group))
        rows = [s for s in held if len(self.shapes[s.tensor]) > 1]
        owners = list(dict.fromkeys(s.tensor.rpartition(".")[0] for s in rows))
        norms = [s for s in held if s.tensor.rpartition(".")[0] not in owners and s.tensor.endswith(("weight", "bias"))]
        if norms:
            first = norms[0].tensor.rpartition(".")[0]
            return tuple(s for s in norms if s.tensor.rpartition(".")[0] == first)
        mine = [s for s in held if s.tensor.rpartition(".")[0] == owners[0]] if owners else []
        if len(owners) > 1:
            return tuple(mine)
        return tuple(
            Slices(s.tensor, s.dim, np.sort(s.index, axis=-1)[..., : s.index.shape[-1] // 2])
            for s in mine
            if s.index.shape[-1] % 2 == 0
        )
