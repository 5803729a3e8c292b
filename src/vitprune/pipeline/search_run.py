"""The whole of `vitprune search`: what all probes need is made once, plans are tried, the best one is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitprune import models
from vitprune.allocate import Target
from vitprune.allocate.allocate import choices, wanted_kinds
from vitprune.data import Data
from vitprune.errors import TargetError
from vitprune.files import write_text
from vitprune.latency.timed import Timed
from vitprune.pipeline.opening import Opened
from vitprune.pipeline.pick import exact_shares, materialise, picked
from vitprune.pipeline.prune_run import PruneResult
from vitprune.pipeline.search_curves import write_curves
from vitprune.pipeline.search_folder import FOUND, PICKS, SearchFolder
from vitprune.pipeline.search_settings import STUDIES, SearchSettings
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep, fit
from vitprune.report import draw_widths, width_rows
from vitprune.report.probes import ProbeRow, draw_probes, probes_csv, probes_markdown
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
    baselines,
    check_resolution,
    curves_for,
    found,
    front,
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


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What a search found."""

    folder: Path
    goal: Goal
    dense_top1: float  # on the validation images
    found: Probe
    fixed: Mapping[str, Probe | None]  # the fixed ratios that hold the goal
    probes: tuple[Probe, ...]  # all that were made, in order
    curves: Curves | None  # what a search by sensitivity measured
    model: PruneResult | None  # what was saved, measured on images that the search did not see; None: by another worker


def run_search(
    spec: str,
    data: DataSettings,
    settings: SearchSettings,
    training: TrainSettings | None,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    allow_module: str | None = None,
    force: bool = False,
    resume: bool = True,
    distill: bool = True,
    new_head: bool = False,
    upkeep: Callable[[Path], Upkeep] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Searches the shares of a model, and saves the model that it found in `out`, under `models/GOAL-probe-NUMBER`.

    training: fine-tuning of the model that was found; None for none. What was chosen by validation images is measured
    on others: the set's test images, or else its validation images, the search then having some of the training images.

    `out` also holds every probe (`probes.jsonl`, `.csv`, `.md`, `.png`) and what was found for every goal
    (`found.json`). The same call goes on where it was stopped; another goal, method or limit uses the probes that are
    there. Raises StoreError when `out` belongs to something else or to a search with other settings of its probes;
    SearchError when nothing holds the goal, or the images cannot tell; all other errors before anything is written.
    """
    if world() > 1:
        raise SearchError(f"a search runs in one process, but {world()} were launched; start it without a launcher")
    settings, data = settings.resolved(), replace(data, separate_test=True)
    said, place, folder = progress or Silent(), resolve_device(device), SearchFolder(out)
    wanted = _decisive(spec, data, settings, seed, new_head)
    folder.check(wanted, force=force)
    opened, images = open_both(
        spec,
        data,
        settings.probe or TrainSettings(seed=seed),
        device=place,
        progress=said,
        new_head=new_head,
        allow_module=allow_module,
        calibration=settings.calibration,
    )
    if settings.max_drop is not None:
        check_resolution(settings.max_drop, images.val.size, len(images.classes))
    work = _Search(opened, images, settings, seed, place, said)
    goal = work.goal()  # fails at once for one that cannot be
    prober = work.prober(folder.begin(wanted | {"groups": work.graph.sizes()}, force=force))
    work.measure_curves(prober, goal, out, spec)
    chosen = work.run(prober, goal) if settings.method not in STUDIES else work.share(prober, goal, out, wanted, force)
    if chosen is None:
        best = found(prober, goal)
        return SearchResult(out, goal, prober.judge.dense.top1, best, {}, tuple(prober.probes), None, None)
    if not chosen.sizes:
        raise SearchError(f"{goal} is the dense model itself; ask for less")
    fixed = baselines(prober, goal) if settings.baselines else {}
    _write(out, goal, settings, prober.judge, chosen, fixed, prober.record.probes)
    how = {"seed": seed, "device": device, "allow_module": allow_module, "distill": distill, "new_head": new_head}
    place_of = out / "models" / _name(goal.name, chosen, training)
    made = materialise(
        spec,
        data,
        settings.pruning(exact_shares(work.graph.sizes(), chosen)),
        training,
        place_of,
        about={"search": str(goal), "method": settings.method, "probe": chosen.to_json()},
        force=force,
        resume=resume,
        upkeep=None if upkeep is None else upkeep(place_of),
        progress=said,
        **how,
    )
    got = made.plan.obtained["macs"]["ratio"]
    draw_widths(width_rows(made.plan), place_of.with_name(f"{place_of.name}-widths.png"), f"{spec}, macs={got:.4f}")
    return SearchResult(out, goal, prober.judge.dense.top1, chosen, fixed, tuple(prober.probes), work.curves, made)


def run_pick(
    folder: Path,
    text: str,
    training: TrainSettings | None,
    out: Path | None = None,
    *,
    force: bool = False,
    resume: bool = True,
    upkeep: Callable[[Path], Upkeep] | None = None,
    **how: Any,
) -> PruneResult:
    """Another point of the search in `folder`: see `picked` for the text. Saved in `out`, or under the folder's picks.

    Model, data and everything that decides a probe are those of the search. how: further arguments of `run_prune`.

    Raises StoreError for a folder without a search, SearchError when no probe meets the condition.
    """
    wanted, probe = SearchFolder(folder).settings(), picked(SearchFolder(folder).record().probes, text)
    settings = SearchSettings.from_json(wanted["probe"])
    place = out or folder / PICKS / _name("picked", probe, training)
    return materialise(
        wanted["model"],
        DataSettings(**wanted["data"]),
        settings.pruning(exact_shares(wanted["groups"], probe)),
        training,
        place,
        about={"picked": text, "probe": probe.to_json()},
        force=force,
        resume=resume,
        upkeep=None if upkeep is None else upkeep(place),
        seed=wanted["seed"],
        new_head=wanted["new_head"],
        **how,
    )


def _name(purpose: str, probe: Probe, training: TrainSettings | None) -> str:
    """Of a model's folder: another probe, or another training, is another model."""
    return f"{purpose}-probe-{probe.number}{'' if training is None else f'-{training.epochs}-epochs'}"


def _decisive(spec: str, data: DataSettings, settings: SearchSettings, seed: int, new_head: bool) -> dict[str, Any]:
    """What decides the outcome of a probe, as JSON values."""
    free = {"max_drop", "target", "cost", "confident", "method", "per", "fractions", "trials", "minutes", "baselines"}
    free |= {"storage", "study"}
    free |= set() if "latency" in _metrics(settings) else {"latency_batch", "threads"}
    probe = {**asdict(settings), "probe": None if settings.probe is None else settings.probe.to_json()}
    probe["kinds"] = list(wanted_kinds(settings.kinds, ()))
    chosen = {name: value for name, value in probe.items() if name not in free}
    given = {"model": spec, "data": asdict(data), "probe": chosen, "seed": seed, "new_head": new_head}
    return dict(json.loads(json.dumps(given)))


def _metrics(settings: SearchSettings) -> tuple[str, ...]:
    return (settings.cost,) if settings.target is None else (settings.target.metric,)


class _Search:
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
        scores = score(self.graph, source, chosen.score, self.seed, images, self.kinds)
        latency = None
        if "latency" in _metrics(chosen):
            names = [g.name for g in self.graph.groups]
            prediction = self._timed().prediction(names)
            whole = prediction.at([g.size for g in self.graph.groups])

            def latency(sizes: Mapping[str, int]) -> float:
                return prediction.at([sizes[name] for name in names]) / whole

        prober = Prober(
            source,
            self.graph,
            scores if rotated is None else ordered(scores, rotated),
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
        from vitprune.search.identity import weights_digest
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
        import numpy as np

        even = {g.name: np.ones((g.lanes, g.size)) for g in self.graph.groups}
        given = {**self.rules, "protect": self.settings.protect, "kinds": self.settings.kinds}
        left = choices(self.graph, even, Target("macs", 1.0), **given).settings["not_pruned"]
        return tuple(g.name for g in self.graph.groups if g.name not in left)


def _write(
    out: Path,
    goal: Goal,
    settings: SearchSettings,
    judge: Judge,
    chosen: Probe,
    fixed: Mapping[str, Probe | None],
    probes: list[Probe],
) -> None:
    """The search's files: all probes, and what was found for each goal so far."""
    path = out / FOUND
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = {
        "goal": str(goal),
        "method": settings.method,
        "per": settings.per,
        "dense_top1": judge.dense.top1,
        "images": judge.dense.images,
        "probe": chosen.number,
        "fixed": {name: None if probe is None else probe.number for name, probe in fixed.items()},
    }
    known[f"{goal.name}, {settings.method} per {settings.per}"] = entry
    write_text(path, json.dumps(known, indent=1))
    purposes = {e["probe"]: name for name, e in known.items()}
    metrics = [m for m in ("macs", "params", "latency") if all(m in p.costs for p in probes)]
    best = {m: {p.number for p in front(probes, m)} for m in metrics}
    rows = [
        ProbeRow(
            p.number,
            p.origin,
            p.quality.top1,
            p.lost.points,
            p.lost.error,
            p.quality.divergence,
            p.costs,
            p.shares,
            p.seconds,
            tuple(m for m in metrics if p.number in best[m]),
            purposes.get(p.number, ""),
        )
        for p in probes
    ]
    title = f"Probes of a search: {judge.dense.images:,} validation images, dense top-1 {100 * judge.dense.top1:.2f} %"
    write_text(out / "probes.csv", probes_csv(rows))
    write_text(out / "probes.md", probes_markdown(title, rows, "probes.png"))
    draw_probes(rows, 100 * judge.dense.top1, title, out / "probes.png")
