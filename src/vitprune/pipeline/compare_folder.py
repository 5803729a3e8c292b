"""The folder of a comparison: `dense/SEED.json` is of the dense model; the rest see `CellFolder`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitprune.errors import StoreError
from vitprune.files import read_object, write_text
from vitprune.pipeline.cell_folder import FAILED, TIMES, CellFolder
from vitprune.pipeline.cells import Cell
from vitprune.pipeline.measure import Measured
from vitprune.pipeline.outcome import alike, saved_point
from vitprune.report import (
    CellResult,
    Comparison,
    FrontPoint,
    Hits,
    comparison_csv,
    comparison_json,
    comparison_markdown,
    draw_comparison,
)
from vitprune.store.read import METRICS

COMPARE = "compare.json"


class CompareFolder(CellFolder):
    """The files of one comparison."""

    marker, what, parts = COMPARE, "comparison", ("runs", "dense")

    # the dense model

    def dense(self, seed: int) -> Measured | None:
        """What was measured of it with this seed."""
        path = self.path / "dense" / f"{seed}.json"
        return Measured.from_json(self._read(path)["row"]) if path.is_file() else None

    def same_dense(self, identity: str) -> Measured | None:
        """What was measured with any seed, if the same images and weights were met."""
        for path in sorted((self.path / "dense").glob("*.json")):
            found = self._read(path)
            if found["identity"] == identity:
                return Measured.from_json(found["row"])
        return None

    def keep_dense(self, seed: int, identity: str, found: Measured) -> None:
        """Writes it down."""
        text = json.dumps({"identity": identity, "row": found.to_json()}, indent=1)
        write_text(self.path / "dense" / f"{seed}.json", text)

    # results

    def comparison(self, about: Mapping[str, Any], title: str, baseline: str, cells: Sequence[Cell]) -> Comparison:
        """Everything that there is by now."""
        found = [self._result(cell) for cell in cells]
        points = alike([c.point for c in found])
        results = tuple(
            CellResult(c.method, c.asked, c.seed, c.key, p, c.hits, c.minutes)
            for c, p in zip(found, points, strict=True)
        )
        methods, targets = (
            tuple(dict.fromkeys(names)) for names in zip(*((c.method, c.asked) for c in found), strict=True)
        )
        return Comparison(title, methods, targets, baseline, results, about)

    def _result(self, cell: Cell) -> CellResult:
        asked, remedy = str(cell.target), f"remove {self.cell(cell)}, and it is done again"
        point, hits, minutes = FrontPoint(cell.key, asked), None, None
        if self.done(cell):
            try:
                point = saved_point(self.model(cell), cell.key, asked, remedy)
                right = read_object(self.model(cell) / METRICS, remedy).get("right")
                hits = None if right is None else Hits.from_json(right)
                minutes = sum(read_object(self.cell(cell) / TIMES, remedy)["seconds"]) / 60
            except (StoreError, LookupError, TypeError, ValueError) as error:  # a folder that was edited
                point = FrontPoint(cell.key, asked, error=f"{error}; {remedy}")
        elif self.failure(cell) is not None:
            point = FrontPoint(cell.key, asked, error=str(self._read(self.cell(cell) / FAILED)["error"]))
        return CellResult(cell.method, asked, cell.seed, cell.key, point, hits, minutes)

    def write(self, found: Comparison) -> None:
        """The tables and the picture."""
        write_text(self.path / "table.json", json.dumps(comparison_json(found), indent=1) + "\n")
        write_text(self.path / "table.csv", comparison_csv(found))
        write_text(self.path / "table.md", comparison_markdown(found, "compare.png"))
        draw_comparison(found, self.path / "compare.png")
