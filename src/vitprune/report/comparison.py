"""Several methods at several targets with several seeds, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from vitprune.report.front import COSTS, FrontPoint
from vitprune.report.paired import Hits, Interval, Spread, by_image, by_seed, spread
from vitprune.report.table import Row


@dataclass(frozen=True, slots=True)
class CellResult:
    """One run: a method, a target, a seed."""

    method: str
    asked: str  # "macs=0.5"
    seed: int
    key: str  # name of its folder
    point: FrontPoint  # finished, failed, or neither yet
    hits: Hits | None = None  # of the model that was saved
    minutes: float | None = None  # all that went into it, stopped attempts included

    @property
    def status(self) -> str:
        """ "done", "failed" or "open"."""
        return "done" if self.point.done else "failed" if self.point.error else "open"

    @property
    def name(self) -> str:
        """Such as "masks macs=0.5 seed 1"."""
        return f"{self.method} {self.asked} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Summary:
    """A method at a target, over its finished seeds; what was not measured is None."""

    method: str
    asked: str
    seeds: tuple[int, ...]
    failed: int  # cells
    top1: Spread | None  # 0..1
    shares: Mapping[str, float] = field(default_factory=dict)  # of the dense model's macs, params, latency; see below
    minutes: float | None = None  # mean


@dataclass(frozen=True, slots=True)
class Difference:
    """A method's top-1 (0..1) minus the baseline's at the same target, over the seeds that both have."""

    method: str
    asked: str
    seeds: tuple[int, ...]
    by_seed: Interval
    by_image: Interval | None  # None where they were not tried on the same images


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells; methods and targets in the order in which they were asked for."""

    title: str
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    baseline: str
    cells: tuple[CellResult, ...]
    about: Mapping[str, Any] = field(default_factory=dict)  # model, data, budget, ... as JSON values

    @property
    def finished(self) -> tuple[CellResult, ...]:
        """Those with a model."""
        return tuple(c for c in self.cells if c.status == "done")

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """Those with an error."""
        return tuple(c for c in self.cells if c.status == "failed")

    @property
    def metric(self) -> str:
        """The cost that all targets are of; "macs" where they are of several, or of none."""
        found = {asked.partition("=")[0] for asked in self.targets}
        one = found.pop() if len(found) == 1 else ""
        return one if one in COSTS else "macs"

    def of(self, method: str, asked: str) -> tuple[CellResult, ...]:
        """The finished cells of a method at a target."""
        return tuple(c for c in self.finished if (c.method, c.asked) == (method, asked))

    def dense(self) -> dict[int, Row]:
        """Seed -> the model that all come from, as it was measured with that seed."""
        return {c.seed: c.point.rows[0] for c in self.finished}

    def summaries(self) -> tuple[Summary, ...]:
        """One for every target and method."""
        return tuple(self._summary(method, asked) for asked in self.targets for method in self.methods)

    def _summary(self, method: str, asked: str) -> Summary:
        cells = self.of(method, asked)
        top1 = [c.point.last.top1 for c in cells if c.point.last.top1 is not None]
        shares: dict[str, list[float]] = {}
        for cell in cells:
            for cost, share in cell.point.shares().items():
                shares.setdefault(cost, []).append(share)
        minutes = [c.minutes for c in cells if c.minutes is not None]
        return Summary(
            method,
            asked,
            tuple(c.seed for c in cells),
            sum((c.method, c.asked) == (method, asked) for c in self.failed),
            spread(top1) if top1 else None,
            {c: median(v) if c == "latency" else fmean(v) for c, v in shares.items()},  # a busy moment bends a mean
            fmean(minutes) if minutes else None,
        )

    def differences(self) -> tuple[Difference, ...]:
        """For every target, and every method but the baseline that shares a seed with it."""
        found = [
            self._difference(method, asked)
            for asked in self.targets
            for method in self.methods
            if method != self.baseline
        ]
        return tuple(d for d in found if d is not None)

    def _difference(self, method: str, asked: str) -> Difference | None:
        ours, theirs = ({c.seed: c for c in self.of(name, asked)} for name in (method, self.baseline))
        seeds = tuple(s for s in ours if s in theirs)
        a, b = ({s: side[s].point.last.top1 or 0.0 for s in seeds} for side in (ours, theirs))
        found = by_seed(a, b)
        if found is None:
            return None
        pairs = [(ours[s].hits, theirs[s].hits) for s in seeds]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        return Difference(method, asked, seeds, found, by_image(known) if len(known) == len(pairs) else None)
