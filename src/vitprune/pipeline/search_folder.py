"""A search's files: what was asked, every probe, what was found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.differences import differing
from vitprune.errors import StoreError
from vitprune.files import check_free, read_object, write_text
from vitprune.search import Record, SearchError

SEARCH, PROBES, FOUND, PICKS = "search.json", "probes.jsonl", "found.json", "picks"
GROUPS = "groups"  # of the settings: sizes of the dense model, which are known when it has been traced
AGAIN = "replace the search with --force"


@dataclass(frozen=True, slots=True)
class SearchFolder:
    """The output folder of a search."""

    path: Path

    def check(self, settings: Mapping[str, Any], *, force: bool) -> bool:
        """Whether the folder is to be made anew; False: it holds this search, which goes on.

        Nothing is changed. Raises StoreError when it belongs to something else, naming what differs.
        """
        if not (self.path / SEARCH).is_file() or force:
            check_free(self.path, force=force, marker=SEARCH)
            return True
        found = {name: value for name, value in self.settings().items() if name != GROUPS}
        others = differing(found, json.loads(json.dumps(dict(settings))))
        if others:
            raise StoreError(
                f"output folder {self.path} holds a search with other settings ({', '.join(others)}); choose another "
                f"--out, or {AGAIN}"
            )
        return False

    def begin(self, settings: Mapping[str, Any], *, new: bool) -> Record:
        """Makes the folder, in place of an old one where that was permitted; what was tried before.

        Raises StoreError when it cannot be written, or holds a damaged record.
        """
        if new and self.path.exists():
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if new:
                write_text(self.path / SEARCH, json.dumps(dict(settings), indent=1))
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror or error}") from error
        return Record(self.path / PROBES)

    def settings(self) -> dict[str, Any]:
        """What was asked for. Raises StoreError for a folder without a search, and a damaged one."""
        if not (self.path / SEARCH).is_file():
            raise StoreError(f"{self.path} holds no search: there is no {SEARCH}")
        return read_object(self.path / SEARCH, AGAIN)

    def record(self) -> Record:
        """What was tried. Raises SearchError when nothing was yet."""
        found = Record(self.path / PROBES)
        if not found.probes:
            raise SearchError(f"the search in {self.path} has made no probe yet; run it first")
        return found
