"""A search by Optuna: `bayes` and `nsga2`. Workers share a study, whose storage holds every probe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vitprune.search.goal import Goal
from vitprune.search.identity import check_same, identity_of
from vitprune.search.probe import Probe
from vitprune.search.prober import Prober
from vitprune.search.proposals import GIVEN
from vitprune.search.samplers import OUTCOME
from vitprune.search.storage import Reach, quiet
from vitprune.search.warm import Given, warm_start

IDENTITY, READY, WAY, TRIES = "vitprune", "ready", "way", "tries"
AFTER = "after"  # the trial that this one repeats
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
READY_S = 60.0  # for the worker that made the study to fill it
RETRIES = 3  # of one trial: it may be what kills its workers


def open_study(
    storage: BaseStorage,
    name: str,
    prober: Prober,
    goal: Goal,
    method: str,
    seed: int,
    more: Mapping[str, Any],
    reach: Reach,
    *,
    force: bool = False,
) -> tuple[Study, list[Mapping[str, float]]]:
    """The study of this name, made and warm-started if it is not there; and the shares that it was given first.

    force: an old one is removed. Raises SearchError when it was made with other settings, or by another program.
    """
    identity = identity_of(prober, goal, method, seed, more)
    if force and name in reach(lambda: optuna.get_all_study_names(storage)):
        reach(lambda: optuna.delete_study(study_name=name, storage=storage))
    given = warm_start(prober, goal)
    try:
        with quiet():
            study = reach(lambda: optuna.create_study(study_name=name, storage=storage, directions=["minimize"] * 2))
    except optuna.exceptions.DuplicatedStudyError:
        study = reach(lambda: optuna.load_study(study_name=name, storage=storage))
        _joined(study, identity, name, reach)
    if not reach(lambda: study.user_attrs.get(READY)):
        reach(lambda: study.set_user_attr(IDENTITY, identity))
        for point, shares in given:
            _enqueue(study, reach, dict(shares), {WAY: [point.way, point.cost]}, once=True)
        reach(lambda: study.set_user_attr(READY, True))
    return study, [shares for _, shares in given]


def _joined(study: Study, identity: Mapping[str, Any], name: str, reach: Reach) -> None:
    """Waits for whoever makes the study, and checks it; returns too when that worker seems to be dead."""
    began = time.monotonic()
    while True:
        found = reach(lambda: study.user_attrs)
        if IDENTITY in found or len(study.directions) != 2 or reach(lambda: study.get_trials(deepcopy=False)):
            check_same(found.get(IDENTITY), identity, name, reach.place)
        if found.get(READY) or time.monotonic() - began > READY_S:
            return
        time.sleep(0.5)


def distributions(prober: Prober) -> dict[str, BaseDistribution]:
    """Axis -> its shares; without those that cannot change."""
    return {a.name: FloatDistribution(a.least, 1.0) for a in prober.space.axes if a.least < 1}


def probes_of(study: Study) -> list[Probe]:
    """The probes of all trials that were finished, by workers on any machine; numbered by their trials, from 1.

    A plan that several trials came to stands there once. Trials that were stopped early are no probes.
    """
    found: dict[tuple[tuple[str, int], ...], Probe] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "probe" in trial.user_attrs.get(OUTCOME, {}):
            probe = Probe.from_json({**trial.user_attrs[OUTCOME]["probe"], "number": trial.number + 1})
            found.setdefault(tuple(sorted(probe.sizes.items())), probe)
    return list(found.values())


def way_of(trial: FrozenTrial | optuna.Trial) -> Given | None:
    """The point of a way that the trial stands for; None: its shares."""
    found = trial.user_attrs.get(WAY)
    return None if found is None else Given(str(found[0]), float(found[1]))


def spent(trials: list[FrozenTrial]) -> float:
    """Seconds that the probes of all workers took."""
    return sum(float(t.user_attrs.get(OUTCOME, {}).get("seconds", 0.0)) for t in trials if t.state in DONE)


def give_up(study: Study, reach: Reach, number: int, *, again: bool = True) -> bool:
    """Marks a trial as failed, and lets another worker do it `again`; whether it was still running.

    A trial that was given up RETRIES times is not tried once more.
    """
    before = next(t for t in reach(lambda: study.get_trials(deepcopy=False)) if t.number == number)
    if before.state != TrialState.RUNNING:
        return False
    try:
        reach(lambda: study.tell(number, state=TrialState.FAIL))
    except (RuntimeError, ValueError):  # another worker was quicker
        return False
    tries = int(before.user_attrs.get(TRIES, 0)) + 1
    shares = {**before.system_attrs.get("fixed_params", {}), **before.params}
    if again and tries <= RETRIES and shares:
        attributes = {k: v for k, v in before.user_attrs.items() if k == WAY} | {TRIES: tries, AFTER: number}
        _enqueue(study, reach, shares, attributes)
    return True


def _enqueue(
    study: Study, reach: Reach, shares: dict[str, float], attributes: dict[str, Any], *, once: bool = False
) -> None:
    reach(lambda: study.enqueue_trial(shares, {GIVEN: True, **attributes}, skip_if_exists=once))
