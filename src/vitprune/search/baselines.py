"""What a search is compared with: fixed ratios, under the same probes and the same goal."""

from __future__ import annotations

from vitprune.errors import TargetError
from vitprune.search.errors import Spent
from vitprune.search.goal import Goal
from vitprune.search.probe import Probe
from vitprune.search.prober import Prober
from vitprune.search.ratio_search import FINE
from vitprune.search.ways import at_cost, bisect, cascade, uniform

BASELINES = ("uniform", "cascade")


def baselines(prober: Prober, goal: Goal, tolerance: float = FINE) -> dict[str, Probe | None]:
    """Name -> the best fixed ratio that holds the goal; None where none does, or too few probes were permitted."""
    found: dict[str, Probe | None] = {}
    for way in (uniform(prober), cascade(prober)):
        try:
            if goal.budget is None:
                found[way.name] = bisect(prober, way, goal.cost, goal.holds, way.name, tolerance)
            else:
                found[way.name] = prober.probe(at_cost(prober, way, goal.cost, goal.budget), way.name)
        except (Spent, TargetError) as error:
            prober.said.line(f"{way.name}: not found: {error}")
            found[way.name] = None
    return found
