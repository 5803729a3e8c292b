"""The folder of a comparison, in which several processes may work at a time.

`compare.json` says whose it is; `runs/KEY` belongs to a cell: `cell.json`, `model` (and `model.work` on the way), then
`done.json`, or `failed.json`. `dense/SEED.json` is of the dense model. `locks/` has an empty file for each lock.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from vitprune.differences import differing
from vitprune.errors import StoreError
from vitprune.files import check_free, read_object, write_text
from vitprune.pipeline.cells import Cell
from vitprune.pipeline.locks import locked
from vitprune.pipeline.measure import Measured
from vitprune.pipeline.outcome import alike, note_failure, saved_point
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
from vitprune.store.read import METRICS, PLAN

COMPARE, CONFIG = "compare.json", "config.toml"
DONE, FAILED, TIMES = "done.json", "failed.json", "times.json"
LOCKS = "locks"


class CompareFolder:
    """The files of one comparison."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.path / "runs" / cell.key

    def model(self, cell: Cell) -> Path:
        """Where its model is saved."""
        return self.cell(cell) / "model"

    # who works here

    def check(self, identity: Mapping[str, Any], *, force: bool) -> bool:
        """Whether the folder belongs to another comparison, which `force` permits to replace.

        identity: what all cells of one folder have in common. Raises StoreError when the folder is not free for it.
        """
        if not (self.path / COMPARE).is_file():
            if not self._beginning():
                check_free(self.path, force=force, marker=COMPARE)
            return False
        others = self._others(json.loads(json.dumps(identity)), force)
        if others and not force:
            raise StoreError(
                f"output folder {self.path} holds a comparison of something else ({', '.join(others)}); choose "
                "another --out, or replace it with --force"
            )
        return bool(others)

    def _others(self, identity: Mapping[str, Any], force: bool) -> list[str]:
        """What differs from the comparison that is there; a file that cannot be read may be replaced, too."""
        try:
            found = read_object(self.path / COMPARE, "replace the comparison with --force")
        except StoreError:
            if force:
                return [COMPARE]
            raise
        return differing(found.get("identity", {}), identity)

    def _beginning(self) -> bool:
        """Whether all that is there is what a process leaves that begins just now."""
        names = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set[str]()
        return LOCKS in names and all(n in (LOCKS, COMPARE) or n.startswith(f".{COMPARE}.") for n in names)

    @contextmanager
    def entered(
        self, identity: Mapping[str, Any], asked: Mapping[str, Any], config: str, *, force: bool
    ) -> Iterator[None]:
        """The folder is there, and its own. What is `asked` and the text of the configuration are written down.

        Raises StoreError as `check`, and when another comparison's folder is to be replaced while it is worked in.
        """
        self.check(identity, force=force)
        self._make(self.path / LOCKS)
        with self.lock("entry"):  # one after the other
            if self.check(identity, force=force):
                self._clear()
            text = json.dumps({"identity": identity, **asked}, indent=1)
            write_text(self.path / COMPARE, text + "\n")
            for name in ("runs", "dense"):
                self._make(self.path / name)
            if config:
                write_text(self.path / CONFIG, config)
            inside = self.lock("folder", shared=True)
            inside.__enter__()
        try:
            yield
        finally:
            inside.__exit__(None, None, None)

    def _clear(self) -> None:
        with self.lock("folder", wait=False) as alone:
            if not alone:
                raise StoreError(
                    f"output folder {self.path} holds another comparison, and a process works in it; end that first"
                )
            for path in self.path.iterdir():
                if path.is_dir() and path.name != LOCKS:
                    shutil.rmtree(path)
                elif not path.is_dir():
                    path.unlink()

    def lock(self, name: str, *, wait: bool = True, shared: bool = False) -> AbstractContextManager[bool]:
        """See `locked`. Names: "entry", "folder", "dense", "tables", and the cells' keys."""
        return locked(self.path / LOCKS / name, wait=wait, shared=shared)

    @staticmethod
    def _make(path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error

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

    # cells

    def done(self, cell: Cell) -> bool:
        """Whether it is finished."""
        return (self.cell(cell) / DONE).is_file() and self.saved(cell)

    def saved(self, cell: Cell) -> bool:
        """Whether its model is there, which appears at once or not at all."""
        return (self.model(cell) / PLAN).is_file()

    def begin(self, cell: Cell) -> None:
        """Makes its folder, and says whose it is."""
        place = self.cell(cell)
        self._make(place)
        for left in place.glob(".model.partial-*"):  # of a process that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        write_text(place / "cell.json", json.dumps(cell.to_json(), indent=1) + "\n")

    def spent(self, cell: Cell, seconds: float) -> None:
        """Adds an attempt's time."""
        path = self.cell(cell) / TIMES
        before = self._read(path)["seconds"] if path.is_file() else []
        write_text(path, json.dumps({"seconds": [*before, round(seconds, 3)]}))

    def finish(self, cell: Cell) -> None:
        """Marks it as finished: the last thing that is written."""
        (self.cell(cell) / FAILED).unlink(missing_ok=True)
        write_text(self.cell(cell) / DONE, json.dumps({"model": "model"}))

    def fail(self, cell: Cell, error: Exception) -> str:
        """Keeps the error, and gives it in one line."""
        about = {"method": cell.method, "asked": str(cell.target), "seed": cell.seed}
        return note_failure(self.cell(cell) / FAILED, about, error)

    def failure(self, cell: Cell) -> int | None:
        """When it failed, as a number that every failure has of its own; None where it did not."""
        try:
            return (self.cell(cell) / FAILED).stat().st_mtime_ns
        except FileNotFoundError:
            return None

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

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        return read_object(path, "remove that file")
