"""Latency for a search that changes sizes on its way: predictions meanwhile, a plan or a measurement at its end.

Where several processes search together, the main one measures and the others wait and are told: a time is not the same
twice, and one process's measuring would disturb another's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprune.allocate import Scope, Target
from vitprune.allocate.allocate import choices, plan_at
from vitprune.arrays import Floats, Ints, Scores
from vitprune.evaluate.latency import using_threads
from vitprune.latency.allocate import (
    Timing,
    allocate_latency,
    dense_time,
    get_table,
    make_clock,
    measured,
    out_of_reach,
)
from vitprune.latency.branches import find_structure
from vitprune.latency.clock import Clock, at_batch
from vitprune.latency.predict import Prediction
from vitprune.latency.search import compare
from vitprune.latency.solver import Solver
from vitprune.latency.table import Table, make_grid
from vitprune.plan import Plan
from vitprune.progress import Progress, Silent
from vitprune.recover.together import told
from vitprune.shrink import shrink
from vitprune.trace.graph import Graph

WHOLE = Target("latency", 1.0)


class Timed:
    """One model's latency table for some of its groups."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        example: Sequence[Any],
        groups: Collection[str],
        *,
        round_to: int = 8,
        minimum: int | Mapping[str, int] | None = None,
        timing: Timing | None = None,
        clock: Clock | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Measures the table, or reads that of this device; arguments and errors are those of `allocate_latency`.

        groups: names of those that may shrink. device: as for `fit`; all processes of a run must come here, and to the
        methods below that measure.
        """
        self.device = device
        self.graph, self.example, self.timing = graph, tuple(example), timing or Timing()
        self.said, self._given = progress or Silent(), clock
        self.args = at_batch(example, self.timing.batch)
        self.clock = clock or make_clock(self.args, self.timing)
        self.rules: dict[str, Any] = {
            "kinds": list(dict.fromkeys(g.kind for g in graph.groups if g.name in groups)),
            "round_to": round_to,
            "minimum": minimum,
            "protect": [g.name for g in graph.groups if g.name not in groups],
        }
        even = {g.name: np.ones((g.lanes, g.size)) for g in graph.groups}
        self.space = choices(graph, even, WHOLE, scope="global", **self.rules)

        def build(sizes: Ints) -> nn.Module:
            return self._small(model, plan_at(self.space, sizes, {}))

        def times() -> tuple[tuple[Floats, ...], float, float]:
            with using_threads(self.timing.threads):
                table = get_table(
                    self.space, self.args, self.timing, model, build, self.clock, self.said, cached=clock is None
                )
                return table.values, table.dense_ms, dense_time(self.clock, model)

        structure = find_structure(graph, self.space.clusters)
        values, dense_ms, self.dense_ms = told(times, device)
        self.table = Table(structure, make_grid(structure), values, dense_ms)

    def prediction(self, names: Sequence[str], device: torch.device | str = "cpu") -> Prediction:
        """See there."""
        return Prediction(self.space.clusters, self.table, names, device)

    def check_reach(self, model: nn.Module, target: Target) -> None:
        """Pass for a target that the quickest sizes meet, which are measured where the table doubts it.

        Raises TargetError otherwise, and for an absolute one above the dense model's time.
        """
        goal = target.budget(self.dense_ms) / self.dense_ms if target.absolute else target.value
        solver = Solver(self.space, self.table)
        if solver.least <= goal:
            return

        def check() -> None:
            quickest = plan_at(self.space, solver.solve(0.0).sizes, {})
            small, how = self._small(model, quickest), self.timing
            with using_threads(how.threads):
                compared = compare(self.clock, model, small, target, how.tolerance, how.seconds)
            if compared.miss(target) > how.tolerance + compared.uncertainty(target):
                raise out_of_reach(self.space, target, compared)

        told(check, self.device)

    def plan(self, model: nn.Module, scores: Scores, target: Target, scope: Scope) -> Plan:
        """See `allocate_latency`."""

        def make() -> Plan:
            return allocate_latency(
                model,
                self.graph,
                scores,
                target,
                self.example,
                timing=self.timing,
                scope=scope,
                clock=self._given,
                table=self.table,
                progress=self.said,
                **self.rules,
            )

        return told(make, self.device)

    def measured(self, model: nn.Module, plan: Plan) -> Plan:
        """The plan with the time that its model takes, measured in turns with the dense one, in `obtained`."""
        self.said.line("measuring the latency of the masks' plan")

        def make() -> dict[str, Any]:
            small = self._small(model, plan)
            with using_threads(self.timing.threads) as threads:
                compared = compare(self.clock, model, small, WHOLE, float("inf"), self.timing.seconds)
            return measured(compared, self.args, self.timing, threads)

        return replace(plan, obtained={**plan.obtained, "latency": told(make, self.device)})

    def _small(self, model: nn.Module, plan: Plan) -> nn.Module:
        return shrink(model, self.graph, plan, check=False, example=self.example).eval()
