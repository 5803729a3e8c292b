"""The stages of `vitprune prune` on an opened model: measure, search, cut, refit, fine-tune; each is done once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import nn

from vitprune import models
from vitprune.allocate.allocate import obtained
from vitprune.allocate.target import COUNTED
from vitprune.compose import compose, same_groups
from vitprune.data import Data
from vitprune.pipeline.begin import BASIS, Begun, begin_once, begun_before
from vitprune.pipeline.learned import METHODS, learn
from vitprune.pipeline.measure import Measured, measured, measured_split, say, with_latency
from vitprune.pipeline.opening import Opened, dense_skeleton, rebuild
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.ranking import Ranking, Rankings, ranked, ranking_key
from vitprune.pipeline.refitted import TRAINED, better_model
from vitprune.pipeline.schedule import Schedule, in_steps
from vitprune.pipeline.setup import DataSettings
from vitprune.pipeline.stages import WorkFolder
from vitprune.pipeline.team import Team
from vitprune.pipeline.versions import versions
from vitprune.plan import Plan
from vitprune.progress import Progress
from vitprune.recover import TrainSettings, Upkeep, fit
from vitprune.refit import refit
from vitprune.report import Answers, Row
from vitprune.rotate import Rotated, basis_settings
from vitprune.shrink import shrink
from vitprune.store.tensors import load_tensors_, save_tensors
from vitprune.trace import trace
from vitprune.trace.graph import Graph

SEARCHED = "search-history"  # of masks: the phases before the fine-tuning


class Stages:
    """The stages of one run; each is skipped when the work folder holds its result."""

    def __init__(
        self,
        opened: Opened,
        data: Data,
        settings: PruneSettings,
        seed: int,
        device: str,
        work: WorkFolder,
        progress: Progress,
        team: Team,
        distill: bool,
        reading: DataSettings,
        rankings: Rankings | None = None,
    ) -> None:
        self.team, self.distill = team, distill
        self.reading, self.rankings = reading, rankings
        self.opened, self.data, self.settings, self.seed = opened, data, settings, seed
        self.device, self.work, self.progress = device, work, progress
        self.test = measured_split(data)
        self.rows: list[Row] = []
        self.answers: list[Answers | None] = []  # of the rows
        self.example = models.example(opened.loaded.preprocessing).to(device)
        self.progress.line("tracing the model")
        self.graph: Graph = trace(opened.model, (self.example,))
        self.plan = Plan({})
        self.rotated: Rotated | None = None
        self.learned: tuple[Plan, nn.Module] | None = None

    def dense(self) -> None:
        """Measures the model as it came."""
        self._row("dense", self.opened.model, self.graph.cost()[0])

    def learn(self, upkeep: Upkeep | None) -> None:
        """Trains masks, where that is the method and was not done yet."""
        if self.work.result("pruned-weights") is None:
            begun = self._first()
            plan, model, histories = learn(
                begun,
                self.opened.model if self.distill else None,
                self.graph,
                self.data,
                self.settings.mask_settings(),
                self.settings.method,
                example=(self.example,),
                device=self.device,
                folder=self.work.path / "masks",
                upkeep=upkeep,
                timing=self.settings.timing,
                progress=self.progress,
            )
            if self.team.main:  # the others read what it leaves
                self.learned = plan, model
                self.work.finish(SEARCHED, {name: history.to_json() for name, history in histories.items()})

    def _first(self) -> Begun:
        """What masks are trained with, a copy: the dense model, or what the main process makes of it."""
        chosen, copied = self.settings, copy.deepcopy(self.opened.model)
        if chosen.learned.start == "dense":
            return Begun(copied, None, basis_settings(None))
        assert self.data.calibration is not None  # see `without_scores`
        with self.team.main_first():
            return begin_once(
                self.work,
                chosen.learned.start,
                copied,
                self.graph,
                chosen.mask_settings(),
                self.data.calibration,
                (self.example,),
                seed=self.seed,
                timing=chosen.timing,
                progress=self.progress,
            )

    def prune(self) -> nn.Module:
        """The smaller model, checked against the masked dense one, and measured."""
        done = self.work.result("pruned-weights")
        if done is not None:
            self.plan = Plan.from_json(done)
            self.plan.check(self.graph)
            model = shrink(self.opened.model, self.graph, self.plan, check=False, example=(self.example,))
            load_tensors_(self.work.path / "pruned.safetensors", model)
            self.progress.line(f"going on with the pruned model in {self.work.path}")
        else:
            self.plan, model = self._decide()
        for name, got in self.plan.obtained.items():
            target = self.settings.target
            wanted = f", asked {target}" if target is not None and name == target.metric else ""
            self.progress.line(f"obtained {name}={got['ratio']:.4f}{wanted} ({got['value']:,} of {got['dense']:,})")
        for note in self.plan.settings["notes"]:
            self.progress.line(f"note: {note}")
        model.to(self.device).eval()
        self._row("pruned", model, self.plan.obtained["macs"]["value"])
        given = self.data.calibration if self.settings.refit else None
        if done is None:
            if given is not None:
                model = self._refitted(model, given)
            save_tensors(self.work.path / "pruned.safetensors", model, {})
            self.work.finish("pruned-weights", self.plan.to_json())
        if given is not None and self.plan.settings.get("weights") != TRAINED:
            self._row("refitted", model, self.plan.obtained["macs"]["value"])
        return model

    def _refitted(self, model: nn.Module, batches: Iterable[Any]) -> nn.Module:
        """The model that goes on, of the plan's sizes; the plan gets what there is to say."""
        if self.settings.method not in METHODS:
            notes: list[str] = []
            refit(self._source(), model, self.graph, self.plan, batches, progress=self.progress, notes=notes)
            self.plan = self.plan.noted(notes)
            return model.to(self.device).eval()
        image = (self.example,)
        kept = better_model(
            model,
            self._basis(),
            self.graph,
            self.plan,
            batches,
            self.data.val,
            start=begun_before(self.work, self.opened.model, self.graph, image),
            example=image,
            device=self.device,
            progress=self.progress,
        )
        self.plan = kept.plan
        self.progress.line(f"note: {kept.said}")
        return kept.model.to(self.device).eval()

    def _decide(self) -> tuple[Plan, nn.Module]:
        chosen, given = self.settings, self.data.calibration
        if self.learned is not None:
            (plan, model), self.learned = self.learned, None
            return replace(plan, source=self.opened.loaded.source.to_json(), versions=versions()), model
        schedule = Schedule(
            chosen.method,
            self.seed,
            chosen.steps,
            chosen.refit,
            chosen.reduction,
            chosen.normalisation,
            chosen.timing,
            chosen.over,
        )
        ranking = self._ranking(schedule)
        self.rotated = ranking.rotated
        plan, model = in_steps(
            self._source(),
            self.graph,
            chosen.target,
            schedule,
            (self.example,),
            given,
            {
                "scope": chosen.scope,
                "kinds": chosen.kinds,
                "round_to": chosen.round_to,
                "minimum": chosen.minimum,
                "protect": chosen.protect,
                "ratios": chosen.ratios,
                "layer_ratios": dict(chosen.layer_ratios),
            },
            rotated=ranking.rotated,
            scores=ranking.scores,
            progress=self.progress,
        )
        return replace(plan, source=self.opened.loaded.source.to_json(), versions=versions()), model

    def _ranking(self, schedule: Schedule) -> Ranking:
        model, chosen = self.opened.model, self.settings
        make = partial(ranked, model, self.graph, chosen, schedule, self.data.calibration, self.progress)
        if self.rankings is None:
            return make()
        key = ranking_key(model, self.graph, chosen, self.seed, self.data, asdict(self.reading))
        return self.rankings.get(key, make, self.progress)

    def _source(self) -> nn.Module:
        """The model that is cut: the dense one, or the same function in another basis."""
        return self.opened.model if self.rotated is None else self.rotated.model

    def _basis(self) -> nn.Module:
        """The dense model, in the basis that masks began in."""
        path, model = self.work.path / BASIS, self.opened.model
        if path.exists():
            model = copy.deepcopy(model)
            load_tensors_(path, model)
        return model

    def tune(
        self, model: nn.Module, training: TrainSettings | None, teacher: nn.Module | None, upkeep: Upkeep | None
    ) -> Any:
        """Trains the model in place; the training history as JSON, None without training."""
        if training is None:
            return None
        history = self.work.result("tuned-weights")
        if history is not None:
            load_tensors_(self.work.path / "tuned.safetensors", model)
        else:
            history = fit(
                model,
                self.data.train,
                self.data.val,
                training,
                device=self.device,
                teacher=teacher,
                checkpoint_dir=self.work.path / "training",
                upkeep=upkeep,
                progress=self.progress,
            ).to_json()
            if self.team.main:
                save_tensors(self.work.path / "tuned.safetensors", model, {})
                self.work.finish("tuned-weights", history)
        if self.team.main:
            self._row("fine-tuned", model, self.plan.obtained["macs"]["value"])
        return history

    def close(self, model: nn.Module) -> tuple[Plan, list[Row]]:
        """The plan relative to the library's dense model, and the rows with latencies, dense and pruned in turns."""
        self.progress.line("measuring latency")
        rows = with_latency(self.rows, self.opened.model, model, self.opened.loaded.preprocessing, self.device)
        if self.opened.plan is None:
            return self.plan, rows
        _, dense = dense_skeleton(self.opened.plan, self.opened.loaded.preprocessing)
        both = compose(self.opened.plan, self.plan, dense, same_groups(self.graph, dense))
        own = {k: v for k, v in self.plan.obtained.items() if k in ("latency", COUNTED)}  # of the model as it came
        both = replace(both, obtained=obtained(dense, both.sizes()) | own)
        rebuild(both, self.opened.loaded.preprocessing)  # if that fails, then before anything is written
        return both, rows

    def _row(self, name: str, model: nn.Module, macs: int) -> None:
        done = self.work.result(name)
        found = Measured.from_json(done) if done is not None else None
        if found is None:
            found = measured(name, model, macs, self.test, self.device, self.progress)
            self.work.finish(name, found.to_json())
        self.rows.append(found.row)
        self.answers.append(found.answers)
        self.progress.line(say(found.row))
