"""A folder of cells, each in a folder of its own, in which several processes may work at a time.

A file says whose it is; `runs/KEY` belongs to a cell: `cell.json`, `model` (and `model.work` on the way), then
`done.json`, or `failed.json`. `locks/` has an empty file for each lock.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from vitprune.differences import differing
from vitprune.errors import StoreError
from vitprune.files import check_free, read_object, write_text
from vitprune.pipeline.locks import locked
from vitprune.pipeline.outcome import note_failure
from vitprune.store.read import PLAN

CONFIG = "config.toml"
DONE, FAILED, TIMES = "done.json", "failed.json", "times.json"
LOCKS = "locks"


class CellLike(Protocol):
    """What the folder needs to know of a cell."""

    @property
    def key(self) -> str:
        """Name of its folder, by everything that decides the outcome."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def about(self) -> dict[str, Any]:
        """Who it is, as JSON values."""

    def to_json(self) -> dict[str, Any]:
        """Who it is, and everything that decides its outcome, as JSON values."""


class CellFolder:
    """The files of several cells."""

    marker = "cells.json"  # says whose the folder is
    what = "study"  # what it holds, in messages
    parts: tuple[str, ...] = ("runs",)  # its sub-folders

    def __init__(self, path: Path) -> None:
        self.path = path

    def cell(self, cell: CellLike) -> Path:
        """The folder of a cell."""
        return self.path / "runs" / cell.key

    def model(self, cell: CellLike) -> Path:
        """Where its model is saved."""
        return self.cell(cell) / "model"

    # who works here

    def check(self, identity: Mapping[str, Any], *, force: bool) -> bool:
        """Whether the folder belongs to something else, which `force` permits to replace.

        identity: what all cells of one folder have in common. Raises StoreError when the folder is not free for it.
        """
        if not (self.path / self.marker).is_file():
            if not self._beginning():
                check_free(self.path, force=force, marker=self.marker)
            return False
        others = self._others(json.loads(json.dumps(identity)), force)
        if others and not force:
            raise StoreError(
                f"output folder {self.path} holds a {self.what} of something else ({', '.join(others)}); choose "
                "another --out, or replace it with --force"
            )
        return bool(others)

    def _others(self, identity: Mapping[str, Any], force: bool) -> list[str]:
        """What differs from what is there; a file that cannot be read may be replaced, too."""
        try:
            found = read_object(self.path / self.marker, f"replace the {self.what} with --force")
        except StoreError:
            if force:
                return [self.marker]
            raise
        return differing(found.get("identity", {}), identity)

    def _beginning(self) -> bool:
        """Whether all that is there is what a process leaves that begins just now."""
        names = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set[str]()
        return LOCKS in names and all(n in (LOCKS, self.marker) or n.startswith(f".{self.marker}.") for n in names)

    @contextmanager
    def entered(
        self, identity: Mapping[str, Any], asked: Mapping[str, Any], config: str, *, force: bool
    ) -> Iterator[None]:
        """The folder is there, and its own. What is `asked` and the text of the configuration are written down.

        Raises StoreError as `check`, and when another folder is to be replaced while it is worked in.
        """
        self.check(identity, force=force)
        self._make(self.path / LOCKS)
        with self.lock("entry"):  # one after the other
            if self.check(identity, force=force):
                self._clear()
            text = json.dumps({"identity": identity, **asked}, indent=1)
            write_text(self.path / self.marker, text + "\n")
            for name in self.parts:
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
                    f"output folder {self.path} holds another {self.what}, and a process works in it; end that first"
                )
            for path in self.path.iterdir():
                if path.is_dir() and path.name != LOCKS:
                    shutil.rmtree(path)
                elif not path.is_dir():
                    path.unlink()

    def lock(self, name: str, *, wait: bool = True, shared: bool = False) -> AbstractContextManager[bool]:
        """See `locked`. Names: "entry", "folder", "tables", and the cells' keys."""
        return locked(self.path / LOCKS / name, wait=wait, shared=shared)

    @staticmethod
    def _make(path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error

    # cells

    def done(self, cell: CellLike) -> bool:
        """Whether it is finished."""
        return (self.cell(cell) / DONE).is_file() and self.saved(cell)

    def saved(self, cell: CellLike) -> bool:
        """Whether its model is there, which appears at once or not at all."""
        return (self.model(cell) / PLAN).is_file()

    def begin(self, cell: CellLike) -> None:
        """Makes its folder, and says whose it is."""
        place = self.cell(cell)
        self._make(place)
        for left in place.glob(".model.partial-*"):  # of a process that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        write_text(place / "cell.json", json.dumps(cell.to_json(), indent=1) + "\n")

    def spent(self, cell: CellLike, seconds: float) -> None:
        """Adds an attempt's time."""
        path = self.cell(cell) / TIMES
        before = self._read(path)["seconds"] if path.is_file() else []
        write_text(path, json.dumps({"seconds": [*before, round(seconds, 3)]}))

    def finish(self, cell: CellLike) -> None:
        """Marks it as finished: the last thing that is written."""
        (self.cell(cell) / FAILED).unlink(missing_ok=True)
        write_text(self.cell(cell) / DONE, json.dumps({"model": "model"}))

    def fail(self, cell: CellLike, error: Exception) -> str:
        """Keeps the error, and gives it in one line."""
        return note_failure(self.cell(cell) / FAILED, cell.about(), error)

    def failure(self, cell: CellLike) -> int | None:
        """When it failed, as a number that every failure has of its own; None where it did not."""
        try:
            return (self.cell(cell) / FAILED).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        return read_object(path, "remove that file")
