"""The trials that a study begins with: what the scores choose by themselves, and equal shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.search.goal import Goal
from vitprune.search.prober import Prober
from vitprune.search.ways import Way, along, analytic, at_cost

LEVELS = 5  # costs at which the scores choose, where the goal names none
FEW = 6  # axes: up to so many, each also goes twice as far once
MOST, SPREAD = 16, 0.4  # of more: so many directions at most, whose weights differ by so much (logarithms)


@dataclass(frozen=True, slots=True)
class Given:
    """A point of a way."""

    way: str  # "analytic", "equal", or the axis that goes twice as far
    cost: float  # share of the dense model's

    def plan(self, prober: Prober, metric: str) -> Plan:
        """Raises TargetError when the way does not come to the cost."""
        return at_cost(prober, self._way(prober, metric), metric, self.cost)

    def _way(self, prober: Prober, metric: str) -> Way:
        if self.way == "analytic":
            return analytic(prober, metric)
        even = dict.fromkeys(prober.space.names, 1.0)
        return along(prober, even if self.way == "equal" else even | {self.way: 2.0}, self.way)


def directions(prober: Prober, points: Sequence[Mapping[str, float]], seed: int) -> list[dict[str, float]]:
    """The proposals that come next.

    Of few axes equal shares, and each one's going twice as far; of many, directions around that of the middle one of
    `points`: among so many shares one at random finds nothing.
    """
    space = prober.space
    even = dict.fromkeys(space.names, 1.0)
    if len(space.names) <= FEW:
        ways = [even, *(even | {name: 2.0} for name in space.names if len(space.names) > 1)]
        return [space.along(weights, 0.9) for weights in ways]
    random = np.random.default_rng(seed)
    middle = space.direction(points[0]) if points else even
    ways = [even]
    for _ in range(min(len(space.names), MOST)):
        ways.append({n: w * float(np.exp(SPREAD * random.standard_normal())) for n, w in middle.items()})
    return [space.along(weights, 0.9) for weights in ways]


def warm_start(prober: Prober, goal: Goal) -> list[tuple[Given, Mapping[str, float]]]:
    """Points with their shares, those first that tell most; without those that cannot be, and the same plans again."""
    names = prober.space.names
    if goal.budget is not None:
        wanted = [Given("analytic", goal.budget)]
    else:
        smallest = prober.costs(prober.plan(dict.fromkeys(names, 0.0)))[goal.cost]
        costs = [1 - (1 - smallest) * (i + 1) / (LEVELS + 1) for i in range(LEVELS)]
        middle = sorted(costs, key=lambda cost: abs(cost - costs[LEVELS // 2]))
        wanted = [Given("analytic", cost) for cost in middle]
    found: list[tuple[Given, Mapping[str, float]]] = []
    seen: list[Mapping[str, int]] = []
    for given in wanted:
        try:
            plan = given.plan(prober, goal.cost)
        except TargetError:
            continue
        sizes = plan.sizes()
        if sizes not in seen and plan.pruned():
            seen.append(sizes)
            found.append((given, prober.space.within(prober.space.of(prober.graph, sizes))))
    return found
