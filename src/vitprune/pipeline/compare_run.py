"""`vitprune compare`: methods at targets with seeds, under one budget of training, by one process or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import nn

from vitprune.allocate.target import Target
from vitprune.data import Data
from vitprune.digest import weights_digest
from vitprune.errors import VitpruneError
from vitprune.pipeline.cells import Cell, ComparisonError, cells_of
from vitprune.pipeline.compare_folder import CompareFolder
from vitprune.pipeline.dense import measured_dense
from vitprune.pipeline.measure import Measured, measured_split
from vitprune.pipeline.opening import Opened
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.ranking import Rankings
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.pipeline.sharing import share
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings, Upkeep
from vitprune.report import Comparison


class CellsFailed(VitpruneError):
    """A comparison of which cells failed."""

    exit_code = 10


def run_compare(
    spec: str,
    data: DataSettings,
    methods: Mapping[str, PruneSettings],
    targets: Iterable[Target | str],
    seeds: Iterable[int],
    training: TrainSettings | None,
    out: Path,
    *,
    baseline: str | None = None,
    config: str = "",
    command: str = "",
    device: str = "auto",
    allow_module: str | None = None,
    force: bool = False,
    resume: bool = True,
    distill: bool = True,
    new_head: bool = False,
    upkeep: Callable[[Path], Upkeep] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Prunes the model that `spec` names by every method to every target with every seed, and compares what comes out.

    methods: by their names in the tables; `training` is the whole training of each, of whose epochs those that train
    masks spend a part on them. Seeds in `methods` and `training` do not count. baseline: what the others' differences
    are taken from, the first method where there is none. config: a text that is kept as config.toml; command: the
    line that makes this call, kept for a report. upkeep: that of a
    run into a folder.

    `out` (see `CompareFolder`) may have been begun by an earlier call, or be worked in by other processes: cells that
    are finished there, by their settings, are not done again. A cell that fails is in the result, with its error, and
    the next one begins; the next call tries it again. The tables `table.md`, `table.csv`, `table.json` and the picture
    `compare.png` are written anew after every cell.

    force: replace the folder of a comparison of another model or other data.

    Raises ComparisonError and others for what makes no sense, StoreError when `out` belongs to something else, and
    errors of the model or the data, all before a cell begins.
    """
    if world() > 1:
        raise ComparisonError(f"a comparison's cells run in one process each, but {world()} were launched together")
    said, place = progress or Silent(), resolve_device(device)
    reading = {name: value for name, value in asdict(data).items() if name != "workers"}  # which decide nothing
    identity = {"model": spec, "data": reading, "new_head": new_head, "device": place.partition(":")[0]}
    common = {**identity, "distill": distill}
    cells = cells_of(methods, targets, seeds, training, common, taught=distill and not new_head)
    first = next(iter(methods)) if baseline is None else baseline
    if first not in methods:
        raise ComparisonError(f"the baseline must be one of the methods {', '.join(methods)}, but got {first!r}")
    budget = 0 if training is None else training.epochs
    asked = {
        "epochs": budget,
        "baseline": first,
        "command": command,
        "cells": {c.key: c.to_json() for c in cells},
    }
    folder = CompareFolder(out)
    replaced = folder.check(identity, force=force)
    dense = _Dense(folder, spec, data, place, new_head, allow_module, said)
    if replaced or folder.dense(cells[0].seed) is None:
        dense.open(cells[0])
    title = f"{spec}, {data.spec}, {budget} epochs"
    about = {**identity, "epochs": budget, "distill": distill}

    rankings = Rankings()

    def tables() -> Comparison:
        with folder.lock("tables"):  # so that the last one to write has seen everything
            found = folder.comparison(about, title, first, cells)
            folder.write(found)
        return found

    def one(cell: Cell) -> None:
        where, met = folder.model(cell), None if folder.saved(cell) else dense.measured(cell)
        begun, saved = time.monotonic(), rankings.saved_s
        try:
            if met is not None:
                run_prune(
                    spec,
                    data,
                    cell.settings,
                    cell.training,
                    where,
                    seed=cell.seed,
                    device=device,
                    allow_module=allow_module,
                    resume=resume,
                    distill=distill,
                    new_head=new_head,
                    dense=met,
                    rankings=rankings,
                    upkeep=None if upkeep is None else upkeep(where),
                    progress=said,
                )
        finally:
            folder.spent(cell, time.monotonic() - begun + rankings.saved_s - saved)  # as if it had been alone
        folder.finish(cell)

    with folder.entered(identity, asked, config, force=force):
        share(folder, cells, one, tables, said)
        return tables()


class _Dense:
    """The dense model's rows: one for all seeds that meet the same weights and images, whoever measures it."""

    def __init__(
        self,
        folder: CompareFolder,
        spec: str,
        data: DataSettings,
        device: str,
        new_head: bool,
        allow_module: str | None,
        progress: Progress,
    ) -> None:
        self.folder, self.spec, self.data, self.device = folder, spec, data, device
        self.new_head, self.allow_module, self.progress = new_head, allow_module, progress
        self.opened: tuple[int, Opened, Data] | None = None  # with the seed

    def open(self, cell: Cell) -> tuple[Opened, Data]:
        """The model and the data. Raises ModelError, DataError or StoreError when they cannot be had or do not fit."""
        how = cell.training or TrainSettings(seed=cell.seed)
        found = open_both(
            self.spec,
            self.data,
            how,
            device=self.device,
            progress=self.progress,
            new_head=self.new_head,
            allow_module=self.allow_module,
        )
        self.opened = (cell.seed, *found)
        return found

    def measured(self, cell: Cell) -> Measured:
        """What is measured of it for the cell's seed, now if it has to be. Raises as `open`."""
        with self.folder.lock("dense"):
            found = self.folder.dense(cell.seed)
            if found is None:
                had = self.opened
                opened, images = had[1:] if had is not None and had[0] == cell.seed else self.open(cell)
                met = _identity(opened.model, images)
                found = self.folder.same_dense(met) or measured_dense(opened, images, self.device, self.progress)
                self.folder.keep_dense(cell.seed, met, found)
            self.opened = None
        return found


def _identity(model: nn.Module, images: Data) -> str:
    """A digest of the weights and of the images that accuracy is measured on."""
    return f"{weights_digest(model)}-{measured_split(images).identity()}"
