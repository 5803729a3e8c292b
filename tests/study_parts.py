"""Studies on a formula instead of a model: what their tests share."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.storages import InMemoryStorage

from formula import Formula, formula_prober, quality
from toys import toy_graph
from vitprune.search import Goal, Limits, Probe, drop
from vitprune.search.worker import study_search

WEIGHTS = (0.4, 2.0, 0.8, 0.3)
DROP, BUDGET = Goal("macs", max_drop=2.0), Goal("macs", budget=0.5)


def lost(shares: Any) -> float:
    """Points: the second axis counts most."""
    return sum(w * (1 / s - 1) for w, s in zip(WEIGHTS, shares.values(), strict=False))


def prober_of(trials: int | None, **more: Any) -> Formula:
    return formula_prober(toy_graph(), lost, per=more.pop("per", "block"), limits=Limits(trials), **more)


def searched(prober: Any, goal: Goal, tmp_path: Any, method: str = "bayes", **more: Any) -> Any:
    return study_search(prober, goal, method, folder=tmp_path, **{"storage": InMemoryStorage()} | more)


def trials_of(storage: Any) -> list[Any]:
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def probe(number: int, macs: float, points: float, images: int = 4000) -> Probe:
    of = quality(points, images)
    return Probe(number, "x", "", {}, {"g": number}, {"macs": macs}, of, drop(quality(0, images), of), 1.0)
