"""Ctrl-C and SIGTERM that wait for the end of a training step."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 1.0


class Patience:
    """While it is entered, the first SIGINT or SIGTERM only sets `asked`; a SIGINT from a second later on acts at once.

    What comes sooner does not: launchers hand on signals that this process had from the terminal or SLURM already. A
    SIGTERM never does, as whoever sends it has SIGKILL.

    Outside of the main thread, and where a signal is ignored, nothing changes.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal that came
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Patience:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def act(self) -> None:
        """Does what the signal would have done: raises KeyboardInterrupt, as a rule. Nothing when there was none."""
        if self.asked is None:
            return
        number, handler = self.asked, self._before.get(self.asked, signal.SIG_DFL)
        self.__exit__()
        if callable(handler):
            handler(number, None)
        os.kill(self._process, number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked off
            raise SystemExit(128 + number)
        if self.asked is None:
            self.asked, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since >= REPEAT_S:
            self.act()
