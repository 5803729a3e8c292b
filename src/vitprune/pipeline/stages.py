"""A work folder beside the output, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.differences import differing
from vitprune.errors import StoreError
from vitprune.files import read_object, write_text
from vitprune.processes import rank

RUN, AGAIN = "run.json", "give --no-resume to start over"


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Stages that are done, each with its result as JSON; tensors lie beside them."""

    path: Path

    @staticmethod
    def join(out: Path) -> WorkFolder:
        """The work folder that the main process has just opened. Raises StoreError when it is not to be seen here."""
        path = out.absolute().with_name(out.absolute().name + ".work")
        if not (path / RUN).is_file():
            raise StoreError(f"process {rank()} does not see {path}; choose an --out that all processes share")
        return WorkFolder(path)

    @staticmethod
    def open(out: Path, settings: Mapping[str, Any], *, resume: bool = True) -> WorkFolder:
        """The work folder of the output folder `out`: a new one, or one left by a run with the same settings.

        Raises StoreError when one is there that belongs to other settings, unless `resume` is off: then it is replaced.
        """
        path = out.absolute().with_name(out.absolute().name + ".work")
        wanted = json.loads(json.dumps(dict(settings)))
        if path.exists() and not (path / RUN).is_file() and any(path.iterdir()):
            raise StoreError(f"work folder {path} was not made by vitprune; move it away or choose another --out")
        if path.exists() and not resume:
            shutil.rmtree(path)
        if (path / RUN).is_file():
            found = read_object(path / RUN, AGAIN)
            other = differing(found, wanted)
            if other:
                raise StoreError(
                    f"work folder {path} belongs to a run with other settings ({', '.join(other)}); "
                    f"{AGAIN}, or choose another --out"
                )
            return WorkFolder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        write_text(path / RUN, json.dumps(wanted, indent=1))
        return WorkFolder(path)

    def result(self, stage: str) -> Any:
        """What `finish` stored for the stage, or None when it is not done."""
        path = self.path / f"{stage}.done.json"
        return read_object(path, AGAIN)["result"] if path.is_file() else None

    def finish(self, stage: str, result: Any) -> None:
        """Marks the stage as done. Raises StoreError when the disk is full."""
        write_text(self.path / f"{stage}.done.json", json.dumps({"result": result}))

    def remove(self) -> None:
        """Deletes the folder, after the output is in place."""
        shutil.rmtree(self.path, ignore_errors=True)
