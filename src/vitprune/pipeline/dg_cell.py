"""One cell of a study: train the dense model or prune it, then, last of all, test in every domain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from vitprune import evaluate
from vitprune.data import Batches
from vitprune.data.domains import join
from vitprune.files import read_object, write_text
from vitprune.pipeline.dg_cells import DgCell
from vitprune.pipeline.dg_folder import DOMAINS, DgFolder
from vitprune.pipeline.dg_settings import StudySettings
from vitprune.pipeline.measure import Measured
from vitprune.pipeline.opening import open_model
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.ranking import Rankings
from vitprune.pipeline.setup import DomainSettings
from vitprune.pipeline.train_run import run_train
from vitprune.progress import Progress
from vitprune.recover import TrainSettings, Upkeep
from vitprune.store.read import METRICS


@dataclass(frozen=True, slots=True, eq=False)
class CellRunner:
    """Does the cells of one study in one process."""

    folder: DgFolder
    data: DomainSettings  # without held-out domains
    settings: StudySettings
    device: str
    progress: Progress
    allow_module: str | None = None
    resume: bool = True
    upkeep: Callable[[Path], Upkeep] | None = None
    rankings: Rankings = field(default_factory=Rankings)  # of the dense models, which many cells are pruned from

    def __call__(self, cell: DgCell) -> None:
        """The cell's model and what was measured of it are in its folder. Raises a VitpruneError that says why not."""
        where, reading = self.folder.model(cell), replace(self.data, held_out=cell.held)
        if not self.folder.saved(cell):
            if cell.settings is None or cell.origin is None:
                self._train(cell, reading, where)
            else:
                self._prune(cell, cell.origin, reading, where)
        found = self._test(cell, reading, where)
        write_text(self.folder.cell(cell) / DOMAINS, json.dumps(found, indent=1) + "\n")
        self.folder.finish(cell)

    def _train(self, cell: DgCell, reading: DomainSettings, where: Path) -> None:
        assert cell.training is not None
        first = cell.origin is None
        run_train(
            cell.model if cell.origin is None else str(self.folder.model(cell.origin)),
            reading,
            cell.training,
            where,
            from_scratch=first and self.settings.from_scratch,
            new_head=first,
            device=self.device,
            allow_module=self.allow_module,
            resume=self.resume,
            upkeep=self._upkeep(where),
            progress=self.progress,
        )

    def _prune(self, cell: DgCell, origin: DgCell, reading: DomainSettings, where: Path) -> None:
        assert cell.settings is not None
        run_prune(
            str(self.folder.model(origin)),
            reading,
            cell.settings,
            cell.training,
            where,
            seed=cell.seed,
            device=self.device,
            allow_module=self.allow_module,
            resume=self.resume,
            distill=self.settings.distill,
            dense=self._dense(origin),
            rankings=self.rankings,
            upkeep=self._upkeep(where),
            progress=self.progress,
        )

    def _upkeep(self, where: Path) -> Upkeep | None:
        return None if self.upkeep is None else self.upkeep(where)

    def _dense(self, cell: DgCell) -> Measured:
        found = read_object(self.folder.model(cell) / METRICS, f"remove {self.folder.cell(cell)}")
        last = Measured.from_json({**found["rows"][-1], "answers": found.get("answers", {}).get("saved")})
        return replace(last, row=replace(last.row, name="dense"))

    def _test(self, cell: DgCell, reading: DomainSettings, where: Path) -> dict[str, Any]:
        """Top-1 by domain, and the times of training, as JSON values."""
        opened = open_model(str(where), device=self.device, allow_module=self.allow_module)
        how = cell.training or TrainSettings(seed=cell.seed)
        parts = reading.open(opened.loaded.preprocessing, seed=cell.seed, batch_size=how.batch_size, device=self.device)

        def tried(batches: Mapping[str, Batches]) -> dict[str, Any]:
            found = {d: evaluate.accuracy(opened.model, b, self.device) for d, b in batches.items()}
            return {d: {"top1": a.top1, "images": a.n} for d, a in found.items()}

        inside, outside, oracle = (tried(side) for side in (parts.validation, parts.test, parts.oracle))
        mean = sum(v["top1"] for v in outside.values()) / len(outside)
        self.progress.line(f"held-out {join(cell.held)}: top-1 {100 * mean:.2f} %")
        metrics = read_object(where / METRICS, f"remove {self.folder.cell(cell)}")
        times, searched = _seconds(metrics.get("history")), map(_seconds, (metrics.get("search") or {}).values())
        about = {"epoch_s": median(times), "train_s": sum(times) + sum(map(sum, searched))} if times else {}
        return {"inside": inside, "outside": outside, "oracle": oracle, **about}


def _seconds(history: Mapping[str, Any] | None) -> list[float]:
    """Of every epoch."""
    return [epoch["seconds"] for epoch in (history or {}).get("epochs", [])]
