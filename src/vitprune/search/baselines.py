"""What a search is compared with: fixed ratios, under the same probes and the same goal."""

from __future__ import annotations

from vitprune.errors import TargetError
from vitprune.search.goal import Goal
from vitprune.search.probe import Probe
from vitprune.search.prober import Limits, Prober
from vitprune.search.ratio_search import FINE
from vitprune.search.ways import at_cost, bisect, cascade, uniform

BASELINES = ("uniform", "cascade")


def baselines(prober: Prober, goal: Goal, tolerance: float = FINE) -> dict[str, Probe | None]:
    """Name -> the best fixed ratio that holds the goal; None where none does.

    Their probes do not count in the limits of the search.
    """
    found: dict[str, Probe | None] = {}
    purpose, limits = prober.purpose, prober.limits
    prober.purpose, prober.limits = f"fixed ratios, {goal.name}", Limits()
    for way in (uniform(prober), cascade(prober)):
        try:
            if goal.budget is None:
                found[way.name] = bisect(prober, way, goal.cost, goal.holds, way.name, tolerance)
            else:
                found[way.name] = prober.probe(at_cost(prober, way, goal.cost, goal.budget), way.name)
        except TargetError as error:
            prober.said.line(f"{way.name}: not found: {error}")
            found[way.name] = None
    prober.purpose, prober.limits = purpose, limits
    return found
