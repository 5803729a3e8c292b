"""The whole of `vitprune search`: what all probes need is made once, plans are tried, the best one is saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitprune.allocate.allocate import wanted_kinds
from vitprune.pipeline.pick import exact_shares, materialise, picked
from vitprune.pipeline.prune_run import PruneResult
from vitprune.pipeline.search_files import write_search
from vitprune.pipeline.search_folder import PICKS, SearchFolder
from vitprune.pipeline.search_settings import STUDIES, SearchSettings
from vitprune.pipeline.search_work import SearchWork, metrics_of
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep
from vitprune.report import draw_widths, width_rows
from vitprune.search import (
    Curves,
    Goal,
    Probe,
    SearchError,
    baselines,
    check_resolution,
    found,
)


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
    command: str = "",
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
    work = SearchWork(opened, images, settings, seed, place, said)
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
    write_search(out, goal, settings, prober.judge, chosen, fixed, prober.record.probes, command)
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
    free |= set() if "latency" in metrics_of(settings) else {"latency_batch", "threads"}
    probe = {**asdict(settings), "probe": None if settings.probe is None else settings.probe.to_json()}
    probe["kinds"] = list(wanted_kinds(settings.kinds, ()))
    chosen = {name: value for name, value in probe.items() if name not in free}
    given = {"model": spec, "data": asdict(data), "probe": chosen, "seed": seed, "new_head": new_head}
    return dict(json.loads(json.dumps(given)))
