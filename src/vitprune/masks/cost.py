"""What the masked model costs, as a differentiable number, and how it presses on the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitprune.allocate.target import METRICS, Target
from vitprune.latency import Timed
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.trace.graph import Graph

RAMP = 0.7  # share of the search in which the budget falls; the rest of it is spent at the target
SETTLED = 0.9  # share of the search after which the sizes are those of the target, and stay
GROWTH = 1.05  # of the weight, per step above the budget
FIRST = 0.5  # the weight to begin with


class SoftCost:
    """MACs, parameters or predicted time at the masks' sizes, as a share of the dense model's.

    The value is that of the plan of now where the relaxation counts whole units (hard-concrete: chances); for latency
    it is what the table says of it. The gradient reaches every unit; a group's size is the mean over its lanes of the
    units counted in each. Groups decided by several masks have the size that stays, and the gradient of the masks'
    mean.
    """

    def __init__(self, gates: Gates, metric: str, timed: Timed | None = None) -> None:
        """timed: for the metric latency, the table of these groups."""
        if metric not in METRICS:
            raise MaskError(f"the cost of masks must be one of {', '.join(METRICS)}, but got {metric!r}")
        graph, layout, device = gates.graph, gates.layout, gates.alpha.device
        self.gates = gates
        groups = {name: i for i, name in enumerate(dict.fromkeys(g for v in gates.vectors for g in v.groups))}
        self.of_sizes: Callable[[Tensor], Tensor]
        self.dense: float  # in the unit of an absolute target
        if metric == "latency":
            if timed is None:
                raise MaskError("latency as the cost of masks needs a table of times (`vitprune.latency.Timed`)")
            self.of_sizes, self.dense = timed.prediction(list(groups), device), timed.dense_ms
        else:
            self.of_sizes = counted = Counted(graph, metric, list(groups), device)
            self.dense = counted.dense
        mean = np.zeros((len(groups), layout.units))
        self.removable: dict[int, slice] = {}
        for name, row in groups.items():
            mine = [i for i, v in enumerate(gates.vectors) if name in v.groups]
            for i in mine:
                share = 1 / (gates.vectors[i].lanes * len(mine))
                mean[row, layout.offset[i] : layout.offset[i + 1]] = share
            if name in layout.union_of:
                first = layout.units + 1 + layout.union_of[name]
                self.removable[row] = slice(first, first + graph[name].size)
        where = np.nonzero(mean)
        self.rows = torch.as_tensor(where[0], device=device)
        self.units = torch.as_tensor(where[1], device=device)
        self.shares = torch.as_tensor(mean[where], device=device)
        self.count = len(groups)

    def __call__(self) -> Tensor:
        """A float64 scalar: 1 is the dense model."""
        return self._of(self.gates.relaxation.presence(self.gates.alpha, self.gates.hard))

    def exact(self) -> float:
        """That of the plan of now, also where the relaxation counts chances."""
        return float(self._of(self.gates.hard.detach()))

    def _of(self, present: Tensor) -> Tensor:
        gates, present = self.gates, present.double()
        sizes = torch.zeros(self.count, dtype=torch.float64, device=present.device)
        sizes = sizes.index_add(0, self.rows, present[self.units] * self.shares)
        if self.removable:
            whole = gates.extended(gates.hard).double()
            kept = torch.zeros_like(sizes)
            for row, units in self.removable.items():
                kept[row] = whole[units].sum() - sizes[row].detach()
            sizes = sizes + kept
        return self.of_sizes(sizes)


class Counted:
    """The trace's polynomial of MACs or parameters, as a share of the dense model's."""

    def __init__(self, graph: Graph, metric: str, names: Sequence[str], device: torch.device) -> None:
        """names: the groups whose sizes are given, in their order; the others keep their dense size."""
        which = ("macs", "params").index(metric)
        polynomial = (graph.macs, graph.params)[which]
        self.dense = graph.cost()[which]
        groups = {name: i for i, name in enumerate(names)}
        fixed = graph.sizes()
        width = max((sum(n in groups for n in terms) for terms, _ in polynomial.terms), default=1)
        merged: dict[tuple[int, ...], float] = {}
        for terms, coefficient in polynomial.terms:
            value = float(coefficient) / self.dense
            for name in terms:
                value *= 1 if name in groups else fixed[name]
            variables = [groups[n] for n in terms if n in groups]
            key = tuple(variables + [len(groups)] * (max(1, width) - len(variables)))
            merged[key] = merged.get(key, 0.0) + value
        self.coefficients = torch.tensor(list(merged.values()), dtype=torch.float64, device=device)
        self.places = torch.tensor(list(merged), device=device)
        self.one = torch.ones(1, dtype=torch.float64, device=device)  # fills up short products

    def __call__(self, sizes: Tensor) -> Tensor:
        """A float64 scalar for the (groups,) sizes: 1 is the dense model."""
        return (self.coefficients * torch.cat([sizes, self.one])[self.places].prod(1)).sum()


@dataclass(frozen=True, slots=True)
class Pressure:
    """How masks are closed: by a fixed weight of the cost, whatever weight a target needs, or a rate at the end.

    With a weight: loss + weight x cost, where the cost of the dense model is 1. With a target: loss + s x max(0, cost -
    budget), where the budget falls from 1 to the target over the first 70 % of the search, and s grows by 5 % with
    every step above the budget and falls by as much with every step within it. With `l1` the loss has l1 x sum |alpha|
    instead, and after the search the masks of the smallest |alpha| are closed: a share `rate` of all, or as many as a
    target needs.

    Source: L. Tredese (Politecnico di Torino, 2023), whose weight is fixed and whose cost is of parameters; for `l1`
    arXiv 2104.08500, equation 6.
    """

    metric: str = "macs"  # macs, params or latency: the cost that has the weight; a target names its own
    weight: float | None = None
    target: Target | None = None
    rate: float | None = None
    l1: float = 0.0
    closings: int = 1  # with `l1`: thresholds, the last of them after the search, the others at equal distances in it

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.weight, self.target, self.rate)) != 1:
            raise MaskError("masks need a weight of the cost, a target or a rate, one of the three")
        if self.rate is not None and not 0 < self.rate < 1:
            raise MaskError(f"the rate is the share of masks to close and must be in 0..1, but got {self.rate}")
        if (self.rate is not None and not self.l1) or self.l1 < 0 or (self.l1 and self.weight is not None):
            raise MaskError(f"a rate needs a positive l1, and a weight of the cost none, but got l1 {self.l1}")
        if self.closings < 1 or (self.closings > 1 and not self.l1):
            raise MaskError(f"closings, 1 or more, are of gates with an l1 penalty, but got {self.closings}")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise MaskError(f"the weight of the cost must be positive, but got {self.weight}")
        if self.metric not in METRICS:
            raise MaskError(f"the cost of masks must be one of {', '.join(METRICS)}, but got {self.metric!r}")

    @property
    def measured(self) -> str:
        """The metric that counts: the target's, where there is one."""
        return self.metric if self.target is None else self.target.metric
