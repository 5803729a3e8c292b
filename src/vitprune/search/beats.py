"""Which workers are alive: each says so again and again, and its trial is another's when it does no longer.

Optuna has heartbeats of its own for databases, but none for journals, and they compare a database's clock with itself
in SQL; these need no clock that two machines share, and are the same for every storage.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, Trial

BEAT = "beat"


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a worker tells that it is alive, and for how long it may be silent; seconds."""

    interval: float = 15.0
    grace: float = 60.0


class Beat:
    """While entered, a thread counts in an attribute of the trial."""

    def __init__(self, trial: Trial, worker: str, rhythm: Rhythm) -> None:
        """worker: a name that no other one has."""
        self.trial, self.worker, self.rhythm = trial, worker, rhythm
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitprune-beat", daemon=True)

    def __enter__(self) -> Beat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        while True:
            with suppress(Exception):  # a storage that does not answer now may do so at the next beat
                self.trial.set_user_attr(BEAT, [self.worker, count])
            count += 1
            if self._stop.wait(self.rhythm.interval):
                return


class Watch:
    """Looks at the beats of running trials, and remembers by its own clock when each changed last."""

    def __init__(self, rhythm: Rhythm) -> None:
        self.rhythm = rhythm
        self._seen: dict[int, tuple[object, float]] = {}  # trial -> its beat, since when

    def silent(self, trials: Iterable[FrozenTrial], own: str) -> list[FrozenTrial]:
        """The running trials of others that did not beat for the grace time, as far as was looked at them."""
        now, found, seen = time.monotonic(), [], {}
        for trial in trials:
            if trial.state != optuna.trial.TrialState.RUNNING:
                continue
            beat = trial.user_attrs.get(BEAT)
            before = self._seen.get(trial.number)
            since = before[1] if before is not None and before[0] == beat else now
            seen[trial.number] = (beat, since)
            if now - since > self.rhythm.grace and (beat is None or beat[0] != own):
                found.append(trial)
        self._seen = seen
        return found
