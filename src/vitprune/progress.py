"""What a long step tells its user: bars on a terminal, plain lines elsewhere, nothing when asked to be quiet."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from vitprune.processes import is_main

Fact = float | int | str


class Progress(Protocol):
    """Receiver of a step's progress. One step at a time: start, advance ..., done."""

    def start(self, name: str, total: int) -> None:
        """A step of `total` units begins."""

    def advance(self, n: int = 1, **facts: Fact) -> None:
        """`n` more units are done; `facts` are shown beside the bar (loss=0.31)."""

    def done(self, text: str = "") -> None:
        """The step is over; `text` is its result in one line."""

    def line(self, text: str) -> None:
        """A line of its own, outside of any step."""


def _show(facts: dict[str, Fact]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())


class Silent:
    """Says nothing."""

    def start(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self, n: int = 1, **facts: Fact) -> None:
        """Nothing."""

    def done(self, text: str = "") -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""


class Lines:
    """Plain lines: one when a step ends and at most one every `every` seconds while it runs."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self._stream = stream or sys.stderr
        self._every = every
        self._name, self._total, self._at, self._last = "", 0, 0, 0.0

    def start(self, name: str, total: int) -> None:
        """Remembers the step; nothing is written yet."""
        self._name, self._total, self._at, self._last = name, total, 0, time.monotonic()

    def advance(self, n: int = 1, **facts: Fact) -> None:
        """Writes `name at/total facts` when `every` seconds went by since the last line."""
        self._at += n
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.line(f"{self._name} {self._at}/{self._total}  {_show(facts)}".rstrip())

    def done(self, text: str = "") -> None:
        """Writes `name: text`, if there is a text."""
        if text:
            self.line(f"{self._name}: {text}")

    def line(self, text: str) -> None:
        """Writes `text` and flushes."""
        print(text, file=self._stream, flush=True)


class Bars:
    """rich progress bars on a terminal."""

    def __init__(self) -> None:
        self._bars: Any = None  # a rich.progress.Progress while a step runs; rich is imported when one starts
        self._task: Any = None
        self._name = ""

    def start(self, name: str, total: int) -> None:
        """Opens a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichBars

        self._close()
        self._name = name
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = RichBars(
            *columns, TextColumn("{task.fields[facts]}"), transient=True, console=Console(stderr=True)
        )
        self._bars.start()
        self._task = self._bars.add_task(name, total=total, facts="")

    def advance(self, n: int = 1, **facts: Fact) -> None:
        """Moves the bar on and shows `facts` beside it."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=n, facts=_show(facts))

    def done(self, text: str = "") -> None:
        """Removes the bar and leaves `name: text`, if there is a text."""
        self._close()
        if text:
            self.line(f"{self._name}: {text}")

    def line(self, text: str) -> None:
        """Writes `text`, above an open bar."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None


def make_progress(quiet: bool = False) -> Progress:
    """`Silent` when quiet or not the main process, `Bars` when standard error is a terminal, else `Lines`."""
    if quiet or not is_main():
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
