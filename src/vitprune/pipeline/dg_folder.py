"""The folder of a study of domains: see `CellFolder`; `runs/KEY/domains.json` holds a cell's top-1 in every domain."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitprune.data.domains import Held, join
from vitprune.errors import StoreError
from vitprune.files import read_object, write_text
from vitprune.pipeline.cell_folder import FAILED, CellFolder, CellLike
from vitprune.pipeline.dg_cells import DgCell
from vitprune.pipeline.measure import row_from_json
from vitprune.report import (
    DomainCell,
    DomainScores,
    DomainStudy,
    domains_csv,
    domains_json,
    domains_markdown,
    draw_study,
)
from vitprune.store.read import METRICS

DOMAINS = "domains.json"


class DgFolder(CellFolder):
    """The files of one study."""

    marker, what = "dg.json", "study of domains"

    def done(self, cell: CellLike) -> bool:
        """Whether it is finished."""
        return super().done(cell) and (self.cell(cell) / DOMAINS).is_file()

    def study(self, about: Mapping[str, Any], title: str, held: Sequence[Held], cells: Sequence[DgCell]) -> DomainStudy:
        """Everything that there is by now."""
        return DomainStudy(title, tuple(join(h) for h in held), tuple(self._result(c) for c in cells), about)

    def _result(self, cell: DgCell) -> DomainCell:
        who: dict[str, Any] = {**cell.about(), "held": join(cell.held), "key": cell.key}
        if self.done(cell):
            remedy = f"remove {self.cell(cell)}, and it is done again"
            try:
                found = read_object(self.cell(cell) / DOMAINS, remedy)
                rows = [row_from_json(r) for r in read_object(self.model(cell) / METRICS, remedy)["rows"]]
                first, last = rows[0], rows[-1]
                measured: dict[str, Any] = {"found": scores_of(found), "params": last.params, "macs": last.macs}
                measured |= {name: found.get(name) for name in ("epoch_s", "train_s")}
                if cell.origin is not None:
                    measured["shares"] = {"params": last.params / first.params, "macs": last.macs / first.macs}
                    pairs = {1: (first.latency_ms, last.latency_ms), 32: (first.latency32_ms, last.latency32_ms)}
                    measured["speed"] = {b: dense / own for b, (dense, own) in pairs.items() if dense and own}
                return DomainCell(**who, **measured)
            except (StoreError, LookupError, TypeError, ValueError) as error:  # a folder that was edited
                return DomainCell(**who, error=f"{error}; {remedy}")
        if self.failure(cell) is not None:
            return DomainCell(**who, error=str(self._read(self.cell(cell) / FAILED)["error"]))
        return DomainCell(**who)

    def write(self, found: DomainStudy) -> None:
        """The tables, and the pictures of each model."""
        write_text(self.path / "table.json", json.dumps(domains_json(found), indent=1) + "\n")
        write_text(self.path / "table.csv", domains_csv(found))
        pictures = draw_study(found, self.path, lambda stem, model: picture_name(found, model, stem))
        write_text(self.path / "table.md", domains_markdown(found, pictures))


def scores_of(found: Mapping[str, Any]) -> DomainScores:
    """Out of the values of a cell's `domains.json`."""
    sides = {name: {d: float(v["top1"]) for d, v in found[name].items()} for name in ("inside", "outside", "oracle")}
    images = {d: int(v["images"]) for name in ("inside", "outside") for d, v in found[name].items()}
    return DomainScores(sides["inside"], sides["outside"], sides["oracle"], images)


def picture_name(found: DomainStudy, model: str, stem: str) -> str:
    """Such as "curves-1-deit_tiny_patch16_224.png"."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", model).strip("_")
    return f"{stem}-{found.models.index(model) + 1}-{name[-40:] or 'model'}.png"
