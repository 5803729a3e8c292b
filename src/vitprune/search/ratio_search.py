"""Separate shares for attention and MLPs: a coarse search, then finer and finer ones by bisection.

Source: Feng et al., "Automatic hyper-parameter search for vision transformer pruning" (PRAI 2023): attention and MLP
modules have ratios of their own, and a binary search finds the finer ratios that keep the loss of accuracy within a
bound. Step sizes are not published; these are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.search.errors import SearchError, Spent
from vitprune.search.goal import Goal
from vitprune.search.probe import Probe
from vitprune.search.prober import Prober
from vitprune.search.space import LEAST_WEIGHT, Shares
from vitprune.search.ways import Way, along, analytic, at_cost, bisect

COARSE, FINE = 0.08, 0.005  # of the dense cost: where the coarse bisection ends, and the fine one
FACTORS = (2.0, 2.0**0.5, 2.0**0.25)  # by which an axis' weight is changed, round after round


def ratio_search(prober: Prober, goal: Goal) -> Probe:
    """The best probe for the goal that the search came to; see `_Search`.

    Raises SearchError when nothing that was tried holds the goal, saying what came nearest.
    """
    search = _Search(prober, goal)
    try:
        search.run()
    except Spent as spent:
        prober.said.line(f"search: ended early, as {spent}")
    return found(prober, goal)


def found(prober: Prober, goal: Goal) -> Probe:
    """The best of all probes. Raises SearchError when none holds the goal."""
    best = goal.best(prober.probes)
    if best is not None:
        return best
    if goal.max_drop is None:
        raise SearchError(f"no probe was made that costs at most {goal.cost}={goal.budget:g}; permit more probes")
    if not prober.probes:
        raise SearchError("no probe was made; permit more (--trials, --budget-minutes)")
    near = min(prober.probes, key=lambda p: (goal.lost(p), p.costs[goal.cost]))
    raise SearchError(
        f"a drop of at most {goal.max_drop:g} points was not found: of {len(prober.probes)} probes the least was "
        f"{goal.lost(near):.2f} points, at {goal.cost}={near.costs[goal.cost]:.3f}; permit a larger drop, more "
        "calibration images or kinds, or a short training of every probe (--probe-epochs)"
    )


class _Search:
    """Points are directions in the space of shares (see `Space.along`) with a cost on each.

    1. coarse: along equal shares, along what the scores choose by themselves, and with one axis going twice as far, a
       bisection; every further direction must first hold at a cost a step below the best so far, or is left at once.
    2. refine: the weight of one axis after the other is multiplied or divided by a factor, which becomes smaller when
       no such change holds a step below the best; the steps become smaller with it.

    With a budget instead of a drop, each direction has one point, at the budget.
    """

    def __init__(self, prober: Prober, goal: Goal) -> None:
        self.prober, self.goal = prober, goal
        self.best: tuple[Probe, Shares] | None = None

    def run(self) -> None:
        """Goes on until no smaller change helps. Raises Spent."""
        prober, names = self.prober, self.prober.space.names
        equal = dict.fromkeys(names, 1.0)
        self._try(along(prober, equal, "equal"), "coarse", COARSE)
        self._try(analytic(prober, self.goal.cost), "analytic", COARSE)
        for name in names if 1 < len(names) <= 6 else ():
            self._try(along(prober, equal | {name: 2.0}, name), "coarse", COARSE)
        if self.best is None:  # not even close to the dense model: one look at the finest step
            self._try(along(prober, equal, "equal"), "coarse", FINE)
        for number, factor in enumerate(FACTORS):
            step = max(FINE, COARSE / 4**number / 2)
            moved = True
            while moved:
                moved = False
                for way in self._moves(factor):
                    moved |= self._try(way, "refine", step)

    def _moves(self, factor: float) -> Iterator[Way]:
        """Every change of one axis from the best point of the moment."""
        names = self.prober.space.names
        if self.best is None:
            return
        yield along(self.prober, self.best[1], "same")
        for name in names[: 1 if len(names) == 2 else None]:  # of two axes only the quotient of the weights counts
            for by in (factor, 1 / factor) if len(names) > 1 else ():
                weights = dict(self.best[1])
                weights[name] = max(weights[name], LEAST_WEIGHT) * by
                yield along(self.prober, weights, f"{name} x {by:.2f}")

    def _try(self, way: Way, origin: str, step: float) -> bool:
        """Whether the way has a better point than the best so far, which it then becomes."""
        goal, prober = self.goal, self.prober
        if goal.budget is not None:
            try:
                return self._better(prober.probe(at_cost(prober, way, goal.cost, goal.budget), origin), way)
            except TargetError:
                return False
        if self.best is None:
            first = bisect(prober, way, goal.cost, goal.holds, origin, step)
            return first is not None and self._better(first, way)
        moved, stride = False, step
        while stride >= step:
            plan = self._below(way, self.best[0].costs[goal.cost] - stride)
            probe = None if plan is None else prober.probe(plan, origin)
            if probe is not None and goal.holds(probe) and self._better(probe, way):
                moved, stride = True, 2 * stride
            else:
                stride = stride / 2 if moved else 0.0
        return moved

    def _below(self, way: Way, cost: float) -> Plan | None:
        try:
            return at_cost(self.prober, way, self.goal.cost, cost) if cost > 0 else None
        except TargetError:
            return None

    def _better(self, probe: Probe, way: Way) -> bool:
        if self.best is not None and not self.goal.prefers(probe, self.best[0]):
            return False
        self.best = (probe, way.weights or self.prober.space.direction(probe.shares))
        return True
