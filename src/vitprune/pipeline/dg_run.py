"""`vitprune dg`: what pruning does to accuracy in domains that training never saw."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from vitprune.data.domain_folder import check_readable
from vitprune.data.domains import Held
from vitprune.data.open_domains import check_splits, chosen_augment, open_domains
from vitprune.errors import VitpruneError
from vitprune.pipeline.dg_cell import CellRunner
from vitprune.pipeline.dg_cells import DgCell, cells_of
from vitprune.pipeline.dg_folder import DgFolder
from vitprune.pipeline.dg_settings import StudyError, StudySettings
from vitprune.pipeline.setup import DomainSettings, resolve_device
from vitprune.pipeline.sharing import share
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import Upkeep
from vitprune.report import DomainStudy


class StudyFailed(VitpruneError):
    """A study of which cells failed."""

    exit_code = 10


def run_dg(
    models: Sequence[str],
    data: DomainSettings,
    settings: StudySettings,
    out: Path,
    *,
    held_out: str | Sequence[Held] = "all",
    device: str = "auto",
    allow_module: str | None = None,
    force: bool = False,
    resume: bool = True,
    begin: bool = True,
    upkeep: Callable[[Path], Upkeep] | None = None,
    progress: Progress | None = None,
) -> DomainStudy:
    """Trains every model without some domains, prunes it in many ways, and tests all of them in those domains.

    data: its `held_out` does not count; see `DomainSet.holds` for what `held_out` may be. Scores, rotation, refit,
    masks, fine-tuning and every choice see the source domains alone; held-out images are read when a cell's model is
    saved. A dense model is trained once for all that is pruned of it.

    `out` (see `CellFolder`) may have been begun by an earlier call, or be worked in by other processes: cells that are
    finished there, by their settings, are not done again. A cell that fails is in the result, with its error, and the
    next one begins; the next call tries it again. Tables and pictures are written anew after every cell.

    force: replace the folder of a study of other data. begin: off, nothing is done that was not done before.

    Raises StudyError and others for what makes no sense, DomainError for domains that do not fit each other and for
    images that cannot be read, StoreError when `out` belongs to something else, all before a cell begins.
    """
    if world() > 1:
        raise StudyError(f"a study's cells run in one process each, but {world()} were launched together")
    said, place = progress or Silent(), resolve_device(device)
    domains = open_domains(data.spec, limit=data.limit)
    held = domains.holds(held_out)
    chosen_augment(domains, data.augment)
    trained = [how for how in (settings.dense, settings.tuning) if how is not None]
    check_splits(domains, held, settings.seeds, data.val_fraction, [how.batch_size for how in trained])
    left = ("workers", "held_out")  # which decide nothing, or belong to a cell
    reading = {name: value for name, value in asdict(data).items() if name not in left}
    identity = {"data": reading, "device": place.partition(":")[0]}
    dense, pruned = cells_of(models, held, settings, identity)
    cells = (*dense, *pruned)
    folder = DgFolder(out)
    folder.check(identity, force=force)
    if begin:
        check_readable(domains, said)
    about = {**identity, "domains": list(domains.names), "classes": len(domains.classes), **settings.facts()}
    title = f"{data.spec}: pruned, and tested in domains that training never saw"

    def tables() -> DomainStudy:
        with folder.lock("tables"):  # so that the last one to write has seen everything
            found = folder.study(about, title, held, cells)
            folder.write(found)
        return found

    runner = CellRunner(folder, data, settings, place, said, allow_module, resume, upkeep)

    def one(cell: DgCell) -> None:
        begun = time.monotonic()
        try:
            runner(cell)
        finally:
            folder.spent(cell, time.monotonic() - begun)

    asked = {"held": held, "cells": {c.key: c.to_json() for c in cells}}
    with folder.entered(identity, asked, "", force=force):
        if not begin:
            return tables()
        share(folder, dense, one, tables, said)
        ready = [c for c in pruned if c.origin is not None and folder.done(c.origin)]
        if len(ready) < len(pruned):
            said.line(f"{len(pruned) - len(ready)} of {len(pruned)} cells wait for dense models that failed")
        share(folder, ready, one, tables, said)
        return tables()
