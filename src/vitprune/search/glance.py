"""Whether a quarter of the images shows already that a probe is not worth the rest."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.search.goal import Goal
from vitprune.search.probe import Probe
from vitprune.search.quality import Judge, Quality, drop


class Glance:
    """Asked after the first images; True: the probe clearly misses the goal, or another one clearly beats it.

    Clearly: the whole 95 % interval of the paired difference lies on the wrong side. Of the probes that cost no more
    (with a budget: of all that hold it) only the best is looked at, as one of many is soon better by chance.
    """

    def __init__(self, goal: Goal, judge: Judge, probes: Sequence[Probe], cost: float) -> None:
        """cost: of what is probed, in the goal's unit."""
        self.goal, self.judge = goal, judge
        bound = cost if goal.budget is None else max(cost, goal.budget)
        rivals = [p for p in probes if p.costs[goal.cost] <= bound * (1 + 1e-9)]
        self.rival = max(rivals, key=lambda p: p.quality.top1, default=None)

    def __call__(self, early: Quality) -> bool:
        """early: of the images that `Judge.early` chooses."""
        if self.goal.max_drop is not None:
            lost = drop(self.judge.early(self.judge.dense), early)
            if lost.ci95[0] > self.goal.max_drop:
                return True
        return self.rival is not None and drop(self.judge.early(self.rival.quality), early).ci95[0] > 0
