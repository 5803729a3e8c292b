"""A worker of a study, as a process of its own: STORAGE FOLDER TRIALS NAME [HANG].

Its probes are a formula. It writes NAME.begun when its study begins; with HANG, its probe number HANG never ends, and
NAME.hangs says that it has begun.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from formula import Formula, formula_prober
from toys import toy_graph
from vitprune.search import Goal, Limits
from vitprune.search.beats import Rhythm
from vitprune.search.worker import study_search

RHYTHM = Rhythm(0.2, 2.0)
WEIGHTS = (0.4, 2.0, 0.8, 0.3)


def lost(shares: Any) -> float:
    """Points: the second axis counts most."""
    return sum(w * (1 / s - 1) for w, s in zip(WEIGHTS, shares.values(), strict=True))


def main(storage: str, folder: Path, trials: int, name: str, hang: int) -> None:
    class Slow(Formula):
        made = 0

        def small(self, plan: Any) -> Any:
            Slow.made += 1
            if Slow.made == hang:
                (folder / f"{name}.hangs").touch()
                time.sleep(600)
            time.sleep(0.05)
            return plan

    prober = formula_prober(toy_graph(), lost, per="block", limits=Limits(trials))
    prober.__class__ = Slow
    (folder / f"{name}.begun").touch()
    found = study_search(prober, Goal("macs", 2.0), "bayes", folder=folder, storage=storage, name="s", rhythm=RHYTHM)
    print(found.best.costs["macs"], found.last)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]) if len(sys.argv) > 5 else 0)
