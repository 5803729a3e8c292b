"""The sizes that are worth most within a predicted time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitprune.allocate.allocate import Choices
from vitprune.arrays import Floats, Ints
from vitprune.latency.knapsack import Knapsack
from vitprune.latency.table import Table
from vitprune.latency.worth import adds_up, branch_worth, kept_values

STEPS = 20_000  # of the dense model's time: the resolution of costs
STEPS_SHARED = 4_000  # where every size of what is shared needs a solution of its own


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Sizes, and what the table says that they cost."""

    sizes: Ints  # one per cluster
    predicted: float  # share of the dense model's time


class Solver:
    """Exact over all combinations of permitted sizes: one knapsack per size of what the branches share.

    Rounding is inside: only permitted sizes are choices.
    """

    def __init__(self, space: Choices, table: Table) -> None:
        structure = table.structure
        self._space, self._structure = space, structure
        kept = kept_values(space)
        blocks = [float(kept[b.block][-1]) for b in structure.branches if b.block is not None]
        means = float(np.mean(blocks)) if blocks else 1.0
        numbers = range(len(structure.branches))
        worths = (branch_worth(table, n, space, kept, means, sums=adds_up(space)) for n in numbers)
        own, shared = zip(*worths, strict=True)
        count = len(shared[0])
        self._shared_worth: Floats = np.sum(shared, axis=0)
        costs = [self._costs(table, n, count) for n in numbers]
        whole = [c[-1 if b.block is None else -2, -1] for c, b in zip(costs, structure.branches, strict=True)]
        self.most = float(sum(whole))  # all at their largest
        self.least = float(min(sum(c[:, s].min() for c in costs) for s in range(count)))
        self._costs_of = costs
        unit = max(self.most, 1e-9) / (STEPS if count == 1 else STEPS_SHARED)
        self._knapsacks = [Knapsack([c[:, s] for c in costs], own, unit) for s in range(count)]

    def _costs(self, table: Table, number: int, count: int) -> Floats:
        """(own choices, shared choices); the last row of a removable branch is its absence."""
        times = table.times(number).reshape(-1, count)
        if self._structure.branches[number].block is not None:
            times = np.concatenate([times, np.zeros((1, count))])
        return times

    def solve(self, budget: float) -> Solution:
        """The sizes that are worth most, predicted to take at most `budget`; the quickest ones when none fit."""
        budget = max(budget, self.least)
        worth = [k.value(budget) + w for k, w in zip(self._knapsacks, self._shared_worth, strict=True)]
        best = int(np.argmax(worth))
        if not np.isfinite(worth[best]):  # rounding of the sums
            best = int(np.argmin([sum(c[:, s].min() for c in self._costs_of) for s in range(len(worth))]))
            chosen = [int(c[:, best].argmin()) for c in self._costs_of]
        else:
            chosen = self._knapsacks[best].choose(budget)
        predicted = sum(float(c[i, best]) for c, i in zip(self._costs_of, chosen, strict=True))
        return Solution(self._sizes(chosen, best), predicted)

    def _sizes(self, chosen: list[int], shared: int) -> Ints:
        sizes = np.array([c.sizes[-1] for c in self._space.clusters], dtype=np.int64)
        for branch, choice in zip(self._structure.branches, chosen, strict=True):
            shape = tuple(len(a.sizes) for a in branch.axes)
            if choice == int(np.prod(shape)):  # the branch goes
                assert branch.block is not None
                sizes[branch.block] = 0
                continue
            for axis, position in zip(branch.axes, np.unravel_index(choice, shape), strict=True):
                sizes[list(axis.clusters)] = axis.sizes[int(position)]
        if self._structure.shared is not None:
            axis = self._structure.shared
            sizes[list(axis.clusters)] = axis.sizes[shared]
        return sizes
