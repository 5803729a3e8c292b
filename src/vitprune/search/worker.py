"""One of the workers of a study: takes trials until the study as a whole has what it may spend."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.search.beats import Beat, Rhythm, Watch
from vitprune.search.errors import SearchError, Stopped
from vitprune.search.glance import Glance
from vitprune.search.goal import Goal
from vitprune.search.probe import Probe
from vitprune.search.prober import Limits, Prober
from vitprune.search.proposals import Proposals
from vitprune.search.quality import Quality, drop
from vitprune.search.ratio_search import found
from vitprune.search.samplers import METHODS, OUTCOME, excess, samplers, values
from vitprune.search.storage import Reach, open_storage, shown
from vitprune.search.study import DONE, distributions, give_up, open_study, probes_of, spent, way_of
from vitprune.search.warm import FEW, directions
from vitprune.search.ways import along, at_cost

LIVE = (*DONE, TrialState.RUNNING, TrialState.WAITING)
WINDOW = (0.87, 0.975)  # of the best cost so far: where the next one is looked for
MOVES = 40  # tries at a plan that is new, each a little farther from what was proposed
FIRST_MOVE, LAST_MOVE = 0.03, 0.5  # of the logarithm of shares
CLASH_S = 5.0  # for the storage, when a trial ends in an exception


@dataclass(frozen=True, slots=True)
class Found:
    """What a study came to."""

    best: Probe
    last: bool  # whether this worker finished it, or joined when it was finished: of many workers, one


def study_search(
    prober: Prober,
    goal: Goal,
    method: str,
    *,
    folder: Path,
    storage: str | BaseStorage | None = None,
    name: str | None = None,
    seed: int = 0,
    identity: Mapping[str, Any] | None = None,
    pruning: bool = True,
    rhythm: Rhythm | None = None,
    force: bool = False,
) -> Found:
    """Works on a study until it has `prober.limits` of finished trials, or of minutes; then the best of all probes.

    The limits are the study's, over all workers: trials that finished (those pruned count, those that failed do not),
    minutes of probing added up over workers. The number of trials is exact; a worker that has none left waits for the
    others' last ones, and takes over those of the dead.

    method: "bayes" (a tree-structured Parzen estimator) or "nsga2". What is minimised: see `values`. A proposal gives
    the proportions of shares; it is scaled to the budget or, with a drop, to a cost that can be the next best.
    storage: see `open_storage`, or one that is open; without one a file in `folder`. name: of the study; without one
    the goal's and method's. identity: JSON values that must be the same for all workers. pruning: see `Glance`. force:
    an old study of the name is replaced.

    One worker with a seed makes the same trials every time, also when it is stopped and goes on, as long as probes and
    scores come out the same. Several workers do not, as what is known when one asks depends on the others' speed.

    `prober.record` holds all workers' probes at the end. Raises SearchError for a study with other settings, a storage
    that cannot be used, no limit, or when nothing holds the goal.
    """
    if method not in METHODS:
        raise SearchError(f"a study is searched by {' or '.join(METHODS)}, but got {method!r}")
    if prober.limits.trials is None and prober.limits.minutes is None:
        raise SearchError("a study ends by its limits, but has none; give --trials or --budget-minutes")
    if not distributions(prober):
        raise SearchError(
            "no share of the model can be changed: permit smaller ones (--round-to, --minimum) or more kinds"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what happens is told by the search
    if isinstance(storage, BaseStorage):
        opened, place = storage, type(storage).__name__
    else:
        opened, place = open_storage(storage, folder), shown(storage)
    reach = Reach(place, prober.said)
    name = name or f"{goal.name}, {method} per {prober.space.per}"
    study, given = open_study(opened, name, prober, goal, method, seed, identity or {}, reach, force=force)
    worker = _Worker(study, prober, goal, method, reach, rhythm or Rhythm(), pruning)
    designed = dict(enumerate(directions(prober, given, seed), len(given)))
    axes = len(prober.space.axes)
    make = samplers(method, axes, len(given) + max(len(designed), 2 * min(axes, FEW)))
    study.sampler = Proposals(make, distributions(prober), seed, worker.realistic, designed)
    limits, prober.limits = prober.limits, Limits()  # the study's, not this worker's
    try:
        last = worker.run(limits)
    finally:
        prober.limits = limits
    return Found(found(prober, goal), last)


class _Worker:
    """A process that takes trials, one at a time."""

    def __init__(
        self, study: Study, prober: Prober, goal: Goal, method: str, reach: Reach, rhythm: Rhythm, pruning: bool
    ) -> None:
        self.study, self.prober, self.goal, self.method = study, prober, goal, method
        self.reach, self.rhythm, self.pruning = reach, rhythm, pruning
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.watch = Watch(rhythm)
        self.space = distributions(prober)
        self.known = 0  # finished trials that were learned
        self.running: list[dict[str, float]] = []  # shares that others try

    def run(self, limits: Limits) -> bool:
        """Until the limits; whether the study's last trial was this worker's, or it made none at all."""
        mine = 0
        while True:
            trials = self._look()
            running = [t for t in trials if t.state == TrialState.RUNNING]
            done = sum(t.state in DONE for t in trials)
            minutes = limits.minutes is not None and spent(trials) >= 60 * limits.minutes
            if minutes or (limits.trials is not None and done + len(running) >= limits.trials):
                if not running:
                    return mine == 0 or self._was_last(trials)
                time.sleep(min(2.0, self.rhythm.interval))
                continue
            mine += self._one(limits)

    def realistic(self, shares: Mapping[str, float], random: np.random.Generator) -> dict[str, float]:
        """The shares of the plan that a proposal comes to; those of one nearby where that was tried already."""
        shares = moved = self._aimed(shares)
        for scale in [0.0, *np.geomspace(FIRST_MOVE, LAST_MOVE, MOVES)]:
            if scale:
                moved = {
                    name: share * float(np.exp(scale * random.standard_normal())) for name, share in shares.items()
                }
            try:
                plan = self._at(moved)
            except TargetError:
                continue
            if self.prober.record.find(_sizes(plan)) is None:
                real = self._inside(self.prober.space.of(self.prober.graph, plan.sizes()))
                if real not in self.running:
                    return real
        return self._inside(shares)

    def _aimed(self, shares: Mapping[str, float]) -> Mapping[str, float]:
        """With a drop as the goal: the shares in their proportions, at a cost that can be the next best.

        A model that costs more than one that holds the drop is not wanted, and one that costs far less is sure to miss
        it. While none holds it, half of the way from the best to the dense model.
        """
        goal, prober = self.goal, self.prober
        if goal.max_drop is None or not prober.probes:
            return shares
        best = goal.best(prober.probes)
        if best is None:
            near = min(prober.probes, key=goal.lost)
            low = high = (1 + near.costs[goal.cost]) / 2
        else:
            low, high = (part * best.costs[goal.cost] for part in WINDOW)
        cost = prober.costs(prober.plan(shares))[goal.cost]
        if low <= cost <= high:
            return shares
        try:
            way = along(prober, prober.space.direction(shares), self.method)
            plan = at_cost(prober, way, goal.cost, high if cost > high else low)
        except TargetError:
            return shares
        return self._inside(prober.space.of(prober.graph, plan.sizes()))

    def _look(self) -> list[FrozenTrial]:
        """The trials of the moment; takes over those of dead workers, and learns what others found."""
        trials = self.reach(lambda: self.study.get_trials(deepcopy=False))
        silent = self.watch.silent(trials, self.name)
        for trial in silent:
            if give_up(self.study, self.reach, trial.number):
                self.prober.said.line(f"trial {trial.number + 1}: its worker is silent; it is tried again")
        if silent:
            trials = self.reach(lambda: self.study.get_trials(deepcopy=False))
        self.running = [dict(t.params) for t in trials if t.state == TrialState.RUNNING]
        done = sum(t.state in DONE for t in trials)
        if done != self.known:
            self.known = done
            self.prober.record.learn(self.reach(lambda: probes_of(self.study)))
        return trials

    def _one(self, limits: Limits) -> int:
        """One trial; 1 where it was finished, else 0."""
        trial = self.reach(lambda: self.study.ask(self.space))
        if self._surplus(trial.number, limits):
            give_up(self.study, self.reach, trial.number)
            return 0
        state = TrialState.PRUNED
        reached: tuple[float, float] | None = None
        with Beat(trial, self.name, self.rhythm):
            began = time.monotonic()
            try:
                probe, known = self._probe(trial)
                missed = excess(self.goal, probe)
                told: dict[str, Any] = {"probe": probe.to_json(), "excess": missed}
                told["seconds"] = 0.0 if known else probe.seconds
                state = TrialState.COMPLETE
                reached = values(self.goal, probe.costs[self.goal.cost], missed, probe.quality.divergence)
            except Stopped as stopped:
                early = stopped.quality
                missed = self._excess(early)
                told = {"top1": early.top1, "divergence": early.divergence, "images": early.images, "excess": missed}
                if self.method == "nsga2":  # whose generations are of trials with values: the early images'
                    state = TrialState.COMPLETE
                    reached = values(self.goal, stopped.cost, missed, early.divergence)
                self.prober.said.line(
                    f"trial {trial.number + 1} ({self.method}): stopped after {early.images} images, "
                    f"top-1 {100 * early.top1:.2f} %"
                )
            except TargetError as error:
                told = {"why": str(error)}
            except BaseException as error:
                with suppress(SearchError):  # where the storage is gone too, others see it by the missing beat
                    give_up(self.study, Reach(self.reach.place, self.prober.said, CLASH_S), trial.number)
                raise error
            told = {"worker": self.name, "seconds": time.monotonic() - began, **told}
        return self._tell(trial, state, reached, told)

    def _probe(self, trial: Trial) -> tuple[Probe, bool]:
        """The trial's probe, and whether it was known."""
        way = way_of(trial)
        plan = self._at(trial.params) if way is None else way.plan(self.prober, self.goal.cost)
        known = self.prober.record.find(_sizes(plan))
        if known is not None:
            return known, True
        cost, rivals = self.prober.costs(plan)[self.goal.cost], self.prober.probes
        stop = Glance(self.goal, self.prober.judge, rivals, cost) if self.pruning and rivals else None
        try:
            return self.prober.probe(plan, self.method if way is None else way.way, stop=stop), False
        except Stopped as stopped:
            stopped.cost = cost
            raise

    def _excess(self, early: Quality) -> float:
        """By how much a probe that was stopped misses the goal: above 0 also where it holds it, but is dominated."""
        if self.goal.max_drop is None:
            return 1.0
        judge = self.prober.judge
        return max(drop(judge.early(judge.dense), early).points - self.goal.max_drop, 1e-3)

    def _tell(
        self, trial: Trial, state: TrialState, reached: tuple[float, float] | None, told: Mapping[str, Any]
    ) -> int:
        """Finishes the trial; 0 when others did so meanwhile."""
        try:
            self.reach(lambda: trial.set_user_attr(OUTCOME, told))
            self.reach(lambda: self.study.tell(trial, reached, state))
        except (RuntimeError, ValueError):
            self.prober.said.line(f"trial {trial.number + 1}: came too late, as others took this worker for dead")
            return 0
        return 1

    def _surplus(self, number: int, limits: Limits) -> bool:
        """Whether the trials before this one are as many as are wanted: others asked at the same moment."""
        if limits.trials is None:
            return False
        trials = self.reach(lambda: self.study.get_trials(deepcopy=False, states=LIVE))
        return sum(t.number < number for t in trials) >= limits.trials

    def _was_last(self, trials: list[FrozenTrial]) -> bool:
        done = [t for t in trials if t.state in DONE and t.datetime_complete is not None]
        last = max(done, key=lambda t: (t.datetime_complete, t.number))
        return bool(last.user_attrs[OUTCOME]["worker"] == self.name)

    def _at(self, shares: Mapping[str, float]) -> Plan:
        """The plan of a proposal. Raises TargetError when the budget cannot be had in its proportions."""
        goal, space = self.goal, self.prober.space
        if goal.budget is None:
            return self.prober.plan(shares)
        way = along(self.prober, space.direction(shares), self.method)
        return at_cost(self.prober, way, goal.cost, goal.budget)

    def _inside(self, shares: Mapping[str, float]) -> dict[str, float]:
        found = self.prober.space.within(shares)
        return {name: found[name] for name in self.space}


def _sizes(plan: Plan) -> dict[str, int]:
    return {name: plan.groups[name].kept_size for name in plan.pruned()}
