"""Tries a plan in seconds: what is the same for all plans is made once."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitprune.allocate import Scope, Target, allocate
from vitprune.arrays import Scores
from vitprune.calibrate import Sensitivity, sensitivities
from vitprune.normal import Z95
from vitprune.plan import Plan, identity
from vitprune.progress import Progress, Silent
from vitprune.refit import refit
from vitprune.refit.refit import FELT
from vitprune.search.probe import Probe
from vitprune.search.quality import Judge, Quality, drop
from vitprune.search.record import Record
from vitprune.search.space import Shares, Space
from vitprune.shortage import memory_for
from vitprune.shrink import shrink
from vitprune.trace.graph import Graph

LESS = (
    "give smaller batches or fewer calibration images (--batch-size, --calibration); the probes made before are kept, "
    "and the same command goes on"
)
Tune = Callable[[nn.Module], None]  # trains a small model in place
Latency = Callable[[Mapping[str, int]], float]  # sizes of all groups -> predicted share of the dense model's time


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search may spend."""

    trials: int | None = None  # probes, those that a search that goes on has made before included
    minutes: float | None = None  # that they take


class Prober:
    """One dense model, its trace, scores, calibration and validation images; and everything tried with them.

    A plan that was tried before, by this search or the one that it goes on with, is not tried again.
    """

    def __init__(
        self,
        source: nn.Module,
        graph: Graph,
        scores: Scores,
        space: Space,
        judge: Judge,
        calibration: Iterable[Any] | None,
        example: tuple[Any, ...],
        *,
        kinds: Sequence[str],
        scope: Scope = "per-cost",
        round_to: int = 8,
        minimum: Mapping[str, int] | None = None,
        protect: Iterable[str] = (),
        refits: bool = True,
        tune: Tune | None = None,
        latency: Latency | None = None,
        limits: Limits | None = None,
        record: Record | None = None,
        progress: Progress | None = None,
    ) -> None:
        """source: the dense model, in the basis in which it is cut. calibration: images for the refit, which are
        run again for every probe; None: no refit.

        scores, kinds, scope, round_to, minimum, protect: see `allocate`. scope: how units compete within an axis.
        """
        self.source, self.graph, self.scores, self.space, self.judge = source, graph, scores, space, judge
        self.calibration, self.example, self.scope = calibration, example, scope
        self.rules: dict[str, Any] = {"kinds": tuple(kinds), "round_to": round_to, "minimum": minimum or {}}
        self.rules["protect"] = tuple(protect)
        self.refits, self.tune, self.latency = refits and calibration is not None, tune, latency
        self.limits, self.record = limits or Limits(), record if record is not None else Record()
        self.said = progress or Silent()
        self.purpose = ""  # of the probes from now on; the limits are those of one purpose
        self._felt: dict[str, Sensitivity] | None = None

    @property
    def probes(self) -> list[Probe]:
        """All that were made, in order."""
        return self.record.probes

    def plan(self, shares: Shares, scope: Scope | None = None) -> Plan:
        """What stays at these shares. Raises TargetError where no plan has them."""
        return self._plan(self.space.rules(shares), scope)

    def by_group(self, shares: Mapping[str, float]) -> Plan:
        """What stays when every group of these names keeps its own share."""
        return self._plan({"layer_ratios": {glob.escape(name): share for name, share in shares.items()}}, None)

    def by_sizes(self, sizes: Mapping[str, int]) -> Plan:
        """What stays at these sizes of groups; the others stay whole."""
        return self.by_group({name: size / self.graph[name].size for name, size in sizes.items()})

    def analytic(self, target: Target) -> Plan:
        """What scores alone choose for the target, without trying anything. Raises TargetError out of reach."""
        return allocate(self.graph, self.scores, target, scope=self.scope, **self.rules)

    def _plan(self, rules: Mapping[str, Any], scope: Scope | None) -> Plan:
        values = [share for given in rules.values() for share in given.values()]
        if all(share >= 1 for share in values):
            return identity(self.graph)
        return allocate(self.graph, self.scores, None, scope=scope or self.scope, **self.rules, **rules)

    def costs(self, plan: Plan) -> dict[str, float]:
        """Metric -> share of the dense model's cost."""
        sizes, dense = plan.sizes(), self.graph.cost()
        found = dict(
            zip(("macs", "params"), (a / b for a, b in zip(self.graph.cost(sizes), dense, strict=True)), strict=True)
        )
        if self.latency is not None:
            found["latency"] = self.latency(sizes)
        return found

    def small(self, plan: Plan) -> nn.Module:
        """The model that the plan gives, refitted and trained as every probe's."""
        model = shrink(self.source, self.graph, plan, check=False, example=self.example)
        if self.refits and self.calibration is not None and plan.pruned():
            refit(self.source, model, self.graph, plan, self.calibration, felt=self._sensitivities())
        if self.tune is not None and plan.pruned():
            self.tune(model)
        return model

    def probe(
        self,
        plan: Plan,
        origin: str,
        shares: Shares | None = None,
        *,
        stop: Callable[[Quality], bool] | None = None,
        **facts: Any,
    ) -> Probe:
        """How good the plan's model is.

        stop: see `Judge`. Raises Spent when the plan was not tried before, and no more may be; Stopped when `stop`
        says so.
        """
        sizes = {name: plan.groups[name].kept_size for name in plan.pruned()}
        known = self.record.find(sizes)
        if known is not None:
            return known
        self.record.check(self.purpose, self.limits.trials, self.limits.minutes)
        began = time.monotonic()
        with memory_for(f"probe {len(self.probes) + 1} ({origin})", LESS):
            quality = self.judge(self.small(plan), stop)
        lost = drop(self.judge.dense, quality)
        made = Probe(
            len(self.probes) + 1,
            origin,
            self.purpose,
            self.space.of(self.graph, plan.sizes()) if shares is None else dict(shares),
            sizes,
            self.costs(plan),
            quality,
            lost,
            time.monotonic() - began,
            facts,
        )
        self.record.add(made)
        self.said.line(
            f"probe {made.number} ({origin}): {_shares(made.shares)}: {_costs(made.costs)}, "
            f"top-1 {100 * quality.top1:.2f} % ({-lost.points:+.2f} ± {Z95 * lost.error:.2f}), {made.seconds:.1f} s"
        )
        return made

    def _sensitivities(self) -> dict[str, Sensitivity]:
        if self._felt is None:
            assert self.calibration is not None
            self._felt = sensitivities(self.source, self.calibration, images=FELT, draws=1)
        return self._felt


def _shares(shares: Shares) -> str:
    if len(shares) > 6:
        return f"{len(shares)} shares {min(shares.values()):.2f} to {max(shares.values()):.2f}"
    return ", ".join(f"{name} {share:.3f}" for name, share in shares.items())


def _costs(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={share:.3f}" for name, share in costs.items())
