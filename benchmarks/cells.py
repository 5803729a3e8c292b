"""Measured cells on disk, so that a long benchmark can be stopped, continued, and extended later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Cells:
    """Rows by their settings, in a JSON-lines file that grows by one line per measured cell.

    A cell is found again by equal settings. The last line of a settings counts; a line cut short by a kill is dropped.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """`fresh`: what the file holds is not looked up any more, but stays until it is measured again."""
        self.path, self._rows = path, dict[str, Row]()
        self._stale: set[str] = set()
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            for row in filter(None, map(_parsed, lines)):
                self._rows[_name(row["settings"])] = row
            self._write()
        if fresh:
            self._stale = set(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        """Settings and values of every cell, in one dictionary each."""
        for row in self._rows.values():
            yield {**row["settings"], **row["values"]}

    def __contains__(self, settings: Mapping[str, Any]) -> bool:
        name = _name(settings)
        return name in self._rows and name not in self._stale

    def get(self, settings: Mapping[str, Any]) -> Row | None:
        """The values of the cell with these settings, or None."""
        return dict(self._rows[_name(settings)]["values"]) if settings in self else None

    def put(self, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Adds a cell, or replaces the one with these settings; it is on disk when this returns."""
        name = _name(settings)
        again = name in self._rows
        self._rows[name] = {"settings": dict(settings), "values": dict(values)}
        self._stale.discard(name)
        if again:
            self._write()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._rows[name]) + "\n")

    def _write(self) -> None:
        whole = "".join(json.dumps(row) + "\n" for row in self._rows.values())
        beside = self.path.with_suffix(".tmp")
        beside.write_text(whole, encoding="utf-8")
        beside.replace(self.path)


def _parsed(line: str) -> Row | None:
    try:
        row: Row = json.loads(line)
    except ValueError:
        return None
    return row


def _name(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def wanted(only: list[str], settings: Mapping[str, Any]) -> bool:
    """Whether settings pass all filters "name=value,value".

    Raises ValueError for a filter that is malformed or names no setting.
    """
    for text in only:
        name, equals, values = text.partition("=")
        if not equals or name not in settings:
            raise ValueError(f"--only must be NAME=VALUE,... with a name of {', '.join(settings)}, but got {text!r}")
        if str(settings[name]) not in values.split(","):
            return False
    return True
