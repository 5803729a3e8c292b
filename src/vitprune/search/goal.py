"""What a search is to find, and which of two probes comes nearer to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitprune.allocate import Target
from vitprune.normal import Z95
from vitprune.search.errors import SearchError
from vitprune.search.probe import COSTS, Probe
from vitprune.search.quality import better


@dataclass(frozen=True, slots=True)
class Goal:
    """The smallest model that loses at most `max_drop`, or the best one that costs at most `budget`."""

    cost: str = "macs"  # what is to be small: one of COSTS
    max_drop: float | None = None  # points of top-1 on the validation images
    budget: float | None = None  # share of the dense model's cost
    confident: bool = False  # the upper end of the drop's 95 % interval must hold max_drop, not the drop itself

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise SearchError(f"the cost of a search must be one of {', '.join(COSTS)}, but got {self.cost!r}")
        if (self.max_drop is None) == (self.budget is None):
            raise SearchError("a search needs either a drop that is permitted (--max-drop) or a target, one of the two")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and 0 <= self.max_drop < 100):
            raise SearchError(f"max-drop must be points of accuracy in [0, 100), but got {self.max_drop:g}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise SearchError(
                f"the budget must be a share of the dense model's cost in (0, 1], but got {self.budget:g}"
            )

    @staticmethod
    def of(target: Target, dense: float) -> Goal:
        """The goal that a target stands for; `dense`: the dense model's cost in the target's unit."""
        return Goal(target.metric, budget=target.budget(dense) / dense)

    def lost(self, probe: Probe) -> float:
        """Points that count against `max_drop`."""
        return probe.lost.ci95[1] if self.confident else probe.lost.points

    def holds(self, probe: Probe) -> bool:
        """Whether the probe keeps what was set: the drop, or the budget."""
        if self.max_drop is not None:
            return self.lost(probe) <= self.max_drop + 1e-9
        assert self.budget is not None
        return probe.costs[self.cost] <= self.budget * (1 + 1e-9)

    def prefers(self, one: Probe, other: Probe) -> bool:
        """Whether `one` is the better result of two that hold."""
        if self.max_drop is None:
            return better(one.quality, other.quality)
        mine, its = one.costs[self.cost], other.costs[self.cost]
        return mine < its or (mine == its and better(one.quality, other.quality))

    def best(self, probes: list[Probe]) -> Probe | None:
        """The best of those that hold; the earliest of equals."""
        found: Probe | None = None
        for probe in probes:
            if self.holds(probe) and (found is None or self.prefers(probe, found)):
                found = probe
        return found

    @property
    def name(self) -> str:
        """Of files: "macs-at-drop-1", "best-at-macs-0.5"."""
        if self.max_drop is not None:
            return f"{self.cost}-at-drop-{self.max_drop:g}{'-confident' if self.confident else ''}"
        return f"best-at-{self.cost}-{self.budget:.6g}"

    def __str__(self) -> str:
        if self.max_drop is not None:
            how = "the upper end of its 95 % interval" if self.confident else "on the validation images"
            return f"the smallest {self.cost} at a drop of at most {self.max_drop:g} points, {how}"
        return f"the best top-1 at {self.cost}={self.budget:.4g}"


def check_resolution(max_drop: float, images: int, classes: int) -> None:
    """Pass when `images` can tell a drop of so many points from none.

    If all images that differ are lost ones, a drop d has the standard error sqrt(d (1 - d) / n): its 95 % interval must
    not reach 0. A drop of 0 needs nothing: it is the largest of which not one image is lost on balance.

    Raises SearchError, with the interval and the number of images that are needed.
    """
    d = max_drop / 100
    if d == 0:
        return
    half = 100 * Z95 * math.sqrt(d * (1 - d) / images)
    if half > max_drop:
        needed = math.ceil(Z95**2 * (1 - d) / d)
        raise SearchError(
            f"{images} validation images are too few to tell a drop of {max_drop:g} points from none: its 95 % "
            f"interval is ± {half:.2g} points at best; at least {needed:,} images are needed "
            f"({-(-needed // max(classes, 1)):,} per class): give more (--val-images, --val-fraction) or permit a "
            "larger drop"
        )
