"""A model and its data made ready for probes, and the methods that probe them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune import models
from vitprune.allocate import Target
from vitprune.allocate.allocate import choices, wanted_kinds
from vitprune.allocate.target import COUNTED, METRICS
from vitprune.data import Data
from vitprune.digest import weights_digest
from vitprune.errors import TargetError
from vitprune.latency.timed import Timed
from vitprune.pipeline.opening import Opened
from vitprune.pipeline.search_curves import write_curves
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.progress import Progress
from vitprune.recover import TrainSettings, fit
from vitprune.rotate import KINDS as ROTATED_KINDS
from vitprune.rotate import ordered, rotate
from vitprune.score import score
from vitprune.search import (
    Curves,
    Goal,
    Judge,
    Limits,
    Probe,
    Prober,
    Record,
    SearchError,
    curves_for,
    held,
    ratio_search,
    sensitivity_search,
    space_of,
)
from vitprune.search.curve_plans import way_of
from vitprune.search.ways import Way, along, at_cost
from vitprune.trace import trace
from vitprune.trace.graph import Graph

TOLERANCE = 0.03  # of a latency that is asked for


def metrics_of(settings: SearchSettings) -> tuple[str, ...]:
    """The costs beyond MACs and parameters that a search needs."""
    return (settings.cost,) if settings.target is None else (settings.target.metric,)


class SearchWork:
    """A model and its data, ready to be probed."""

    def __init__(
        self, opened: Opened, data: Data, settings: SearchSettings, seed: int, device: str, progress: Progress
    ) -> None:
        self.opened, self.data, self.settings, self.seed = opened, data, settings, seed
        self.device, self.said = device, progress
        self.example = (models.example(opened.loaded.preprocessing).to(device),)
        self.said.line("tracing the model")
        self.graph: Graph = trace(opened.model, self.example)
        self.kinds = wanted_kinds(settings.kinds, ())
        self.rules: dict[str, Any] = {"round_to": settings.round_to, "minimum": dict(settings.minimum)}
        self.groups = self._groups()
        self.space = space_of(self.graph, self.groups, settings.per, **self.rules)
        self.timed: Timed | None = None
        self.curves: Curves | None = None

    def goal(self) -> Goal:
        """What is to be found. Raises SearchError and TargetError for what makes no sense."""
        chosen = self.settings
        if chosen.target is None:
            return Goal(chosen.cost, chosen.max_drop, confident=chosen.confident)
        if chosen.max_drop is not None:
            raise SearchError("a search needs either a drop that is permitted (--max-drop) or a target, one of the two")
        if chosen.target.metric == COUNTED:
            raise SearchError(
                f"a search has a target of {', '.join(METRICS)}, but got {chosen.target}; it counts costs"
            )
        if chosen.target.metric == "latency":
            dense = self._timed().dense_ms
        else:
            dense = float(self.graph.cost()[("macs", "params").index(chosen.target.metric)])
        return Goal.of(chosen.target, dense)

    def prober(self, record: Record) -> Prober:
        """Rotated, scored, and with its validation images; what was tried before stands in `record`."""
        chosen, given = self.settings, self.data.calibration
        images = None if given is None else held(given)
        source: nn.Module = self.opened.model
        rotated = None
        turned = [kind for kind in self.kinds if kind in ROTATED_KINDS]
        if chosen.rotate and images is not None and turned:
            self.said.line("rotating what can be rotated")
            rotated = rotate(source, self.graph, images, self.kinds)
            source = rotated.model
        self.said.line(f"scoring by {chosen.score}")
        scores = ordered(score(self.graph, source, chosen.score, self.seed, images, self.kinds), rotated)
        latency = None
        if "latency" in metrics_of(chosen):
            names = [g.name for g in self.graph.groups]
            prediction = self._timed().prediction(names)
            whole = prediction.at([g.size for g in self.graph.groups])

            def latency(sizes: Mapping[str, int]) -> float:
                return prediction.at([sizes[name] for name in names]) / whole

        prober = Prober(
            source,
            self.graph,
            scores,
            self.space,
            Judge(self.opened.model, self.data.val, self.device),
            images,
            self.example,
            kinds=self.kinds,
            scope=chosen.scope,  # type: ignore[arg-type]  # resolved
            protect=chosen.protect,
            refits=chosen.refit,
            tune=None if chosen.probe is None else partial(self._tune, chosen.probe),
            latency=latency,
            limits=Limits(chosen.trials, chosen.minutes),
            record=record,
            progress=self.said,
            **self.rules,
        )
        dense = prober.judge.dense
        self.said.line(f"dense: top-1 {100 * dense.top1:.2f} % of {dense.images} validation images")
        return prober

    def measure_curves(self, prober: Prober, goal: Goal, out: Path, spec: str) -> None:
        """For a search by sensitivity: what every part loses, and its files."""
        if self.settings.method != "sensitivity":
            return
        prober.purpose = self._purpose(goal)
        self.curves = curves_for(prober, goal, self.settings.fractions)
        write_curves(out, self.curves, f"Sensitivity of {spec}, one part smaller at a time", prober.judge.dense.images)

    def run(self, prober: Prober, goal: Goal) -> Probe:
        """The best probe for the goal."""
        self._begin(prober, goal)
        if self.curves is None:
            return self._end(prober, goal, ratio_search(prober, goal))
        chosen, way = sensitivity_search(prober, goal, self.curves), way_of(self.curves, prober, goal.cost)
        return self._end(prober, goal, chosen, way)

    def share(self, prober: Prober, goal: Goal, folder: Path, decisive: Mapping[str, Any], force: bool) -> Probe | None:
        """The best probe of a study, when this worker is the one that ends it; None: another one is."""
        from vitprune.search.worker import study_search

        self._begin(prober, goal)
        kept, prober.record = prober.record, prober.record.copy()  # workers may share the folder: one of them writes
        ended = study_search(
            prober,
            goal,
            self.settings.method,
            folder=folder,
            storage=self.settings.storage,
            name=self.settings.study,
            seed=self.seed,
            identity={**decisive, "weights": weights_digest(self.opened.model)},
            force=force,
        )
        if not ended.last:
            self.said.line(
                f"the study is finished: best {goal.cost}={ended.best.costs[goal.cost]:.4f}; another worker saves"
            )
            return None
        kept.learn(prober.probes)
        prober.record = kept
        best = kept.find(ended.best.sizes)
        assert best is not None
        return self._end(prober, goal, best)

    def _begin(self, prober: Prober, goal: Goal) -> None:
        self.said.line(f"searching {goal}, shares of {', '.join(prober.space.names)}")
        prober.purpose = self._purpose(goal)

    def _end(self, prober: Prober, goal: Goal, chosen: Probe, way: Way | None = None) -> Probe:
        if goal.cost == "latency" and goal.budget is not None:
            chosen = self._at_latency(prober, goal, chosen, way)
        self.said.line(
            f"found, with {len(prober.record.of(prober.purpose))} probes: probe {chosen.number}, "
            f"{goal.cost}={chosen.costs[goal.cost]:.4f}, {-chosen.lost.points:+.2f} points"
        )
        return chosen

    def _purpose(self, goal: Goal) -> str:
        return f"{self.settings.method} per {self.settings.per}, {goal.name}"

    def _at_latency(self, prober: Prober, goal: Goal, chosen: Probe, way: Way | None = None) -> Probe:
        """A plan of the way (None: the shares in their proportions) whose measured time is the one asked for."""
        assert goal.budget is not None
        budget, way = goal.budget, way or along(prober, prober.space.direction(chosen.shares), "latency")
        prober.limits = Limits()
        for _ in range(4):
            plan = prober.by_sizes(chosen.sizes)
            got = self._timed().measured(prober.source, plan).obtained["latency"]["ratio"]
            self.said.line(f"measured latency={got:.4f}x, predicted {chosen.costs['latency']:.4f}x")
            if abs(got / goal.budget - 1) <= TOLERANCE:
                return chosen
            budget *= goal.budget / got
            try:
                smaller = at_cost(prober, way, "latency", budget)
            except TargetError as error:
                raise SearchError(
                    f"latency={goal.budget:.4g}x cannot be reached with these kinds: a model of predicted "
                    f"{chosen.costs['latency']:.4f}x takes {got:.4f}x when it is measured; ask for more, or let more "
                    "kinds shrink"
                ) from error
            chosen = prober.probe(smaller, "latency")
        self.said.line(f"note: latency asked {goal.budget:.4g}x, not within {TOLERANCE:.0%} after four measurements")
        return chosen

    def _tune(self, training: TrainSettings, model: nn.Module) -> None:
        """A short training of a probe, with the dense model as teacher."""
        fit(model, self.data.train, self.data.val, training, device=self.device, teacher=self.opened.model)

    def _timed(self) -> Timed:
        if self.timed is None:
            self.timed = Timed(
                self.opened.model,
                self.graph,
                self.example,
                self.groups,
                timing=self.settings.timing,
                progress=self.said,
                **self.rules,
            )
        return self.timed

    def _groups(self) -> tuple[str, ...]:
        """Names of the groups that may shrink. Raises TargetError for malformed settings."""
        even = {g.name: np.ones((g.lanes, g.size)) for g in self.graph.groups}
        given = {**self.rules, "protect": self.settings.protect, "kinds": self.settings.kinds}
        left = choices(self.graph, even, Target("macs", 1.0), **given).settings["not_pruned"]
        return tuple(g.name for g in self.graph.groups if g.name not in left)
