"""The processes of one run: the main one opens, prunes, measures and writes first, and all train together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from vitprune.processes import world

PATIENCE = timedelta(days=2)  # the others wait while the main process prunes


class Team:
    """All processes; one that was started by itself is its own team."""

    def __init__(self, device: str) -> None:
        """`device`: as for `fit`; it becomes this process's own GPU where there are several."""
        self._state: Any = None
        if world() > 1:
            from accelerate.state import PartialState

            self._state = PartialState(cpu=device == "cpu", timeout=PATIENCE)

    @property
    def main(self) -> bool:
        """Whether this process writes files and progress."""
        return self._state is None or bool(self._state.is_main_process)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the body first, then the others: what it wrote is there for them."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()
