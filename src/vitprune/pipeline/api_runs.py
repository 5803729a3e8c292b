"""From Python what the command line does with a model, data and a folder: sweep, search, compare, export, dg."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitprune.allocate import Target
from vitprune.pipeline.compare_run import run_compare
from vitprune.pipeline.dg_run import run_dg
from vitprune.pipeline.dg_settings import StudySettings
from vitprune.pipeline.export_run import run_export
from vitprune.pipeline.export_settings import Card, ExportResult, ExportSettings
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.search_run import SearchResult, run_search
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings, DomainSettings
from vitprune.pipeline.sweep_run import points_of, run_sweep
from vitprune.recover import TrainSettings
from vitprune.report import Comparison, DomainStudy, Front


def sweep(
    spec: str,
    data: DataSettings | str,
    out: Path | str,
    *,
    targets: Iterable[Target | str] = (),
    mask_weights: Iterable[float] = (),
    rates: Iterable[float] = (),
    settings: PruneSettings | None = None,
    training: TrainSettings | None = None,
    **how: Any,
) -> Front:
    """A model for every target, weight of the cost (method masks) or rate (vtp), saved in `out`, and their front.

    spec, data: MODEL and DATA of the command line. settings: what all have in common; training: the fine-tuning, None
    for none. how: further arguments of `run_sweep` (seed, device, force, progress, ...), which says what lies in `out`.

    Points that failed are in the result, `failed`, and raise nothing. Raises TargetError without points, StoreError
    when `out` belongs to something else, and errors that all points would meet.
    """
    points = points_of(targets, mask_weights, rates)
    reading = DataSettings(data) if isinstance(data, str) else data
    return run_sweep(spec, reading, settings or PruneSettings(None), points, training, Path(out), **how)


def search(
    spec: str,
    data: DataSettings | str,
    out: Path | str,
    *,
    max_drop: float | None = None,
    target: Target | str | None = None,
    settings: SearchSettings | None = None,
    training: TrainSettings | None = None,
    **how: Any,
) -> SearchResult:
    """The smallest model that loses at most `max_drop` points of top-1, or the best one that costs `target`, saved.

    spec, data: MODEL and DATA of the command line. settings: method, kinds, limits and all else; its goal does not
    count where one is given here. training: fine-tuning of the model that is found, None for none. how: further
    arguments of `run_search` (seed, device, force, progress, ...), which says what lies in `out`, and what is raised.
    """
    wanted, reading = settings or SearchSettings(), DataSettings(data) if isinstance(data, str) else data
    if max_drop is not None or target is not None:
        budget = Target.parse(target) if isinstance(target, str) else target
        wanted = replace(wanted, max_drop=max_drop, target=budget)
    return run_search(spec, reading, wanted, training, Path(out), **how)


def compare(
    spec: str,
    data: DataSettings | str,
    out: Path | str,
    *,
    methods: Mapping[str, PruneSettings],
    targets: Iterable[Target | str],
    seeds: Iterable[int] = (0,),
    training: TrainSettings | None = None,
    **how: Any,
) -> Comparison:
    """Every method to every target with every seed, models saved in `out`, and what differs between them.

    spec, data: MODEL and DATA of the command line. methods: settings without targets, by the names that the tables
    show. training: of all epochs of each method; those that train masks spend `learned.search` and `learned.warmup`
    of them, and what is left goes into fine-tuning. None: no training, for scores only. how: further arguments of
    `run_compare` (baseline, device, force, progress, ...), which says what lies in `out` and what is done anew.

    Cells that failed are in the result, `failed`, and raise nothing. Raises ComparisonError for what makes no sense,
    StoreError when `out` belongs to something else, and errors of the model or the data.
    """
    reading = DataSettings(data) if isinstance(data, str) else data
    return run_compare(spec, reading, methods, targets, seeds, training, Path(out), **how)


def export(
    spec: Path | str,
    out: Path | str,
    format: str = "onnx",
    *,
    quantize: str | None = None,
    data: DataSettings | str | None = None,
    settings: ExportSettings | None = None,
    card: Card | None = None,
    **how: Any,
) -> ExportResult:
    """The model in another runtime's format, in the folder `out`, compared with the model and timed beside it.

    spec, data: MODEL and DATA of the command line. format: a key of `vitprune.export.FORMATS`, or "hf". settings: all
    else; its format and quantize do not count. how: further arguments of `run_export` (force, seed, progress, ...),
    which says what is raised; on any error nothing is left behind.
    """
    wanted = replace(settings or ExportSettings(), format=format, quantize=quantize)
    reading = DataSettings(data) if isinstance(data, str) else data
    return run_export(str(spec), reading, wanted, Path(out), card=card, **how)


def dg(
    models: str | Sequence[str],
    data: DomainSettings | str,
    out: Path | str,
    *,
    settings: StudySettings | None = None,
    held_out: str | Sequence[Sequence[str]] = "all",
    **how: Any,
) -> DomainStudy:
    """Every model without some domains, pruned in many ways, and tested in those domains; all saved in `out`.

    models: MODEL of the command line, one or several. data: a folder DOMAIN/CLASS/*, or the name of a set of domains.
    settings: ratios, scores, forms, seeds, training. held_out: see `DomainSet.holds`. how: further arguments of
    `run_dg` (device, force, progress, ...), which says what lies in `out` and what is done anew.

    Cells that failed are in the result, `failed`, and raise nothing. Raises StudyError for what makes no sense,
    DomainError for domains that do not fit each other, StoreError when `out` belongs to something else.
    """
    named = (models,) if isinstance(models, str) else tuple(models)
    reading = DomainSettings(data) if isinstance(data, str) else data
    groups = held_out if isinstance(held_out, str) else [tuple(h) for h in held_out]
    return run_dg(named, reading, settings or StudySettings(), Path(out), held_out=groups, **how)
