"""Plans from curves: what is to be removed of each part, from what each alone was measured to cost."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.errors import TargetError
from vitprune.plan import Plan, identity
from vitprune.search.adder import Adder, Sizes
from vitprune.search.errors import Spent
from vitprune.search.goal import Goal
from vitprune.search.parts import PartsPer, parts_of
from vitprune.search.probe import Probe
from vitprune.search.prober import Prober
from vitprune.search.ratio_search import COARSE, FINE, found
from vitprune.search.sensitivity import FRACTIONS, Curves, curves_of
from vitprune.search.ways import Way, at_cost, bisect

DEEPER = (0.9, 1.0)  # fractions that are measured besides of parts that a plan would make as small as was measured


def sensitivity_search(prober: Prober, goal: Goal, curves: Curves | None = None) -> Probe:
    """The best probe for the goal among the plans that the curves give; they are measured if not given.

    With a drop instead of a budget, a bisection along the plans finds the cheapest that keeps it.

    Raises SearchError when nothing was measured, or nothing that was tried holds the goal; TargetError when the curves
    do not reach down to the budget.
    """
    curves = curves_for(prober, goal) if curves is None else curves
    try:
        if goal.budget is not None:
            prober.probe(plan_from(curves, prober, goal.cost, goal.budget), "sensitivity")
        else:
            bisect(prober, way_of(curves, prober, goal.cost), goal.cost, goal.holds, "sensitivity", FINE)
    except Spent as spent:
        prober.said.line(f"search: ended early, as {spent}")
    return found(prober, goal)


def curves_for(prober: Prober, goal: Goal, fractions: Sequence[float] = FRACTIONS, per: PartsPer = "kind") -> Curves:
    """As `curves_of`, and larger fractions of the parts of which the plan for the goal would remove more.

    Those are the parts that it makes as small as was measured; with a drop, the plan is that of a coarse bisection.

    Raises TargetError, before anything is measured, for a budget that the smallest sizes of all parts do not keep.
    """
    if goal.budget is not None:
        _check_reach(prober, goal.cost, goal.budget, per)
    further: dict[str, tuple[float, ...]] = {}
    curves = curves_of(prober, fractions, per)
    for deeper in DEEPER:
        try:
            pinned = () if curves.missing else _pinned(curves, _near(prober, goal, curves))
        except Spent:
            break
        if not pinned:
            break
        further |= {name: (*further.get(name, ()), deeper) for name in pinned}
        curves = curves_of(prober, fractions, per, further)
    return curves


def plan_from(curves: Curves, prober: Prober, cost: str, budget: float) -> Plan:
    """The plan of the least divergence, as the curves add up, that costs at most `budget` (1: dense).

    Raises TargetError when the largest fractions that were measured do not reach down to it.
    """
    try:
        return at_cost(prober, way_of(curves, prober, cost), cost, budget)
    except TargetError as error:
        raise TargetError(f"{error}; measure larger fractions removed, or let further kinds shrink") from error


def way_of(curves: Curves, prober: Prober, cost: str) -> Way:
    """The plans that the curves give for every budget. Raises SearchError for curves without levels."""
    adder = Adder(curves, prober, cost)

    def at(t: float) -> Plan:
        return identity(prober.graph) if t >= 1 else prober.by_sizes(adder.sizes(t))

    return Way("sensitivity", at)


def _check_reach(prober: Prober, cost: str, budget: float, per: PartsPer) -> None:
    sizes = {name: size for part in parts_of(prober, per) for name, size in part.choices[-1].items()}
    smallest = prober.costs(prober.by_sizes(sizes))
    if cost in smallest and smallest[cost] > budget:
        raise TargetError(
            f"{cost}={budget:.4g} cannot be reached: with all parts at their smallest it is {smallest[cost]:.4g}; ask "
            "for more, or let more kinds shrink"
        )


def _near(prober: Prober, goal: Goal, curves: Curves) -> Sizes:
    """Sizes of all groups where the goal lies, or a little below, or where the curves end before it."""
    adder, budget = Adder(curves, prober, goal.cost), goal.budget
    if budget is None:
        probe = bisect(prober, way_of(curves, prober, goal.cost), goal.cost, goal.holds, "sensitivity", COARSE)
        budget = 1.0 if probe is None else probe.costs[goal.cost] - COARSE
    return {**prober.graph.sizes(), **adder.sizes(budget)}


def _pinned(curves: Curves, sizes: Sizes) -> tuple[str, ...]:
    """Names of the parts that are as small as was measured, and may become smaller."""
    found = []
    for curve in curves.curves:
        part = curve.part
        removed = part.removed[part.choices.index({name: sizes[name] for name in part.groups})]
        if curve.levels and curve.levels[-1].removed - 1e-9 <= removed < part.removed[-1] - 1e-9:
            found.append(part.name)
    return tuple(found)
