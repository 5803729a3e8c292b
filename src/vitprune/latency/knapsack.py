"""One choice per branch, the most value within a budget: solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitprune.arrays import Floats, Ints


class Knapsack:
    """The multiple-choice knapsack, solved for all budgets at once by dynamic programming.

    costs, values: per item one entry per choice. Costs are rounded up to whole steps of `unit`, beyond which the
    solution is exact: a choice's cost never counts less than it is.

    Source: the recursion of Dudzinski and Walukiewicz (EJOR 28, 1987) over items, without reductions.
    """

    def __init__(self, costs: Sequence[Floats], values: Sequence[Floats], unit: float) -> None:
        self._choices = [_undominated(c, v) for c, v in zip(costs, values, strict=True)]
        self._steps = [
            np.ceil((c[keep] - c[keep[0]]) / unit - 1e-9).astype(np.int64)
            for c, keep in zip(costs, self._choices, strict=True)
        ]
        self._least = float(sum(c[keep[0]] for c, keep in zip(costs, self._choices, strict=True)))
        self._most = float(sum(c[keep[-1]] for c, keep in zip(costs, self._choices, strict=True)))
        self._unit = unit
        bins = int(sum(s[-1] for s in self._steps)) + 1
        best = np.zeros(bins)  # most value of the items so far for a cost of at most so many steps
        self._taken: list[npt.NDArray[np.int32]] = []
        for steps, value, keep in zip(self._steps, values, self._choices, strict=True):
            after, taken = best + value[keep[0]], np.zeros(bins, dtype=np.int32)
            for number in range(1, len(keep)):
                at = int(steps[number])
                tried = best[: bins - at] + value[keep[number]]
                better = tried > after[at:]
                after[at:][better] = tried[better]
                taken[at:][better] = number
            best = after
            self._taken.append(taken)
        self._best = best

    def _bin(self, budget: float) -> int:
        if budget >= self._most * (1 - 1e-12):  # everything fits, whatever rounding up says
            return len(self._best) - 1
        return min(int(np.floor((budget - self._least) / self._unit + 1e-9)), len(self._best) - 1)

    def value(self, budget: float) -> float:
        """The most value that the budget allows; minus infinity when not even the cheapest choices fit."""
        at = self._bin(budget)
        return float(self._best[at]) if at >= 0 else -np.inf

    def choose(self, budget: float) -> list[int]:
        """The choice of every item that gives `value(budget)`; of equal values the cheaper choice of the later items.

        Raises ValueError when the cheapest choices do not fit.
        """
        at = self._bin(budget)
        if at < 0:
            raise ValueError(f"the cheapest choices cost {self._least:g}, above the budget {budget:g}")
        chosen: list[int] = []
        for taken, steps, keep in zip(self._taken[::-1], self._steps[::-1], self._choices[::-1], strict=True):
            number = int(taken[at])
            at -= int(steps[number])
            chosen.append(int(keep[number]))
        return chosen[::-1]


def _undominated(costs: Floats, values: Floats) -> Ints:
    """The choices of which no other is as cheap and worth as much, by rising cost and value."""
    order = np.lexsort((-values, costs))
    rising = np.maximum.accumulate(np.append(-np.inf, values[order]))
    return order[values[order] > rising[:-1]]
