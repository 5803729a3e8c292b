"""Searches by Optuna in one process: what is proposed, kept, stopped and refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from formula import Formula, formula_prober
from study_parts import BUDGET, DROP, prober_of, searched, trials_of
from toys import toy_graph
from vitprune.search import Goal, Limits, Probe, SearchError, Spent, found, front
from vitprune.search.samplers import OUTCOME
from vitprune.search.study import DONE, RETRIES, probes_of, spent
from vitprune.search.ways import along, at_cost
from vitprune.shortage import MemoryShortage

# ---- what it finds ----


def random_best(goal: Goal, trials: int, seed: int) -> Probe:
    random, prober = np.random.default_rng(seed), prober_of(trials)
    try:
        while True:
            shares = {axis.name: random.uniform(axis.least, 1) for axis in prober.space.axes}
            plan = prober.plan(shares)
            if goal.budget is not None:
                plan = at_cost(prober, along(prober, prober.space.direction(shares), "random"), "macs", goal.budget)
            prober.probe(plan, "random")
    except Spent:
        return found(prober, goal)


@pytest.mark.parametrize(("method", "part"), [("bayes", 0.97), ("nsga2", 1.0)])
def test_it_beats_random_shares(method, part, tmp_path):
    bests = [searched(prober_of(30), DROP, tmp_path, method, seed=seed).best for seed in range(3)]
    assert all(best.lost.points <= 2 for best in bests)
    random = np.mean([random_best(DROP, 30, seed).costs["macs"] for seed in range(6)])
    assert np.mean([best.costs["macs"] for best in bests]) < part * random


def test_with_a_budget_every_trial_is_at_it(tmp_path):
    prober = prober_of(24)
    best = searched(prober, BUDGET, tmp_path, pruning=False).best
    costs = [p.costs["macs"] for p in prober.probes]
    assert len(costs) > 15 and max(costs) <= 0.5 + 1e-9 and min(costs) > 0.48
    assert best.lost.points <= np.mean([random_best(BUDGET, 24, seed).lost.points for seed in range(4)])


def test_trials_begin_with_what_the_scores_choose(tmp_path):
    storage = InMemoryStorage()
    prober = prober_of(12)
    searched(prober, DROP, tmp_path, storage=storage, pruning=False)
    origins = [p.origin for p in prober.probes]
    assert origins == ["analytic"] * 5 + ["bayes"] * 7
    for trial, probe in zip(trials_of(storage), prober.probes, strict=True):
        assert trial.params == pytest.approx(
            prober.space.within(prober.space.of(prober.graph, prober.by_sizes(probe.sizes).sizes()))
        )
    shares = [tuple(p.shares.values()) for p in prober.probes]
    assert len(set(shares)) == 12  # no plan twice


def test_the_front_is_made_from_the_storage_alone(tmp_path):
    storage, prober = f"sqlite:///{tmp_path}/s.db", prober_of(15)
    searched(prober, DROP, tmp_path, storage=storage)
    (name,) = optuna.get_all_study_names(storage)
    probes = probes_of(optuna.load_study(study_name=name, storage=storage))
    assert [p.sizes for p in probes] == [p.sizes for p in prober.probes]
    ends = front(probes, "macs")
    assert len(ends) > 2
    assert all(a.costs["macs"] < b.costs["macs"] and a.quality.top1 < b.quality.top1 for a, b in pairwise(ends))
    for probe in ends:  # any of them can be had
        plan = prober_of(None).by_sizes(probe.sizes)
        assert {n: plan.groups[n].kept_size for n in plan.pruned()} == probe.sizes


def test_what_was_tried_before_is_not_tried_again(tmp_path):
    prober = prober_of(12)
    searched(prober, DROP, tmp_path, storage=InMemoryStorage(), pruning=False)
    calls = prober.judge.calls
    storage = InMemoryStorage()
    searched(prober, DROP, tmp_path, storage=storage, pruning=False)  # another study, the same record
    known = [t for t in trials_of(storage) if t.user_attrs[OUTCOME]["seconds"] == 0]
    assert len(known) >= 5 and prober.judge.calls == calls + 12 - len(known)


def test_a_space_of_few_plans_ends(tmp_path):
    prober = formula_prober(toy_graph(), lambda shares: 1.0, kinds=("mlp",), round_to=32, limits=Limits(12))
    best = searched(prober, Goal("macs", 5.0), tmp_path, pruning=False).best
    assert best.costs["macs"] == min(p.costs["macs"] for p in prober.probes)
    assert len(prober.probes) < 12


def test_shares_that_cannot_change_are_refused(tmp_path):
    prober = formula_prober(toy_graph(), lambda shares: 1.0, kinds=("mlp",), limits=Limits(3))
    prober.space = replace(prober.space, axes=tuple(replace(axis, least=1.0) for axis in prober.space.axes))
    with pytest.raises(SearchError, match="no share of the model can be changed"):
        searched(prober, DROP, tmp_path)


# ---- stops, limits, seeds ----


def test_a_study_that_is_stopped_goes_on_as_if_it_were_not(tmp_path):
    whole = InMemoryStorage()
    searched(prober_of(16), DROP, tmp_path, storage=whole, seed=3)
    stopped = InMemoryStorage()

    class Interrupted(Formula):
        def small(self, plan: Any) -> Any:
            if self.judge.calls == 9:
                raise KeyboardInterrupt
            return plan

    prober = prober_of(16)
    prober.__class__ = Interrupted
    with pytest.raises(KeyboardInterrupt):
        searched(prober, DROP, tmp_path, storage=stopped, seed=3)
    assert [t.state.name for t in trials_of(stopped)][-2:] == ["FAIL", "WAITING"]
    assert prober.limits.trials == 16
    again = searched(prober_of(16), DROP, tmp_path, storage=stopped, seed=3)
    assert again.last
    done = [[t for t in trials_of(s) if t.state != TrialState.FAIL] for s in (whole, stopped)]
    assert [t.params for t in done[0]] == [t.params for t in done[1]]
    assert [t.values for t in done[0]] == [t.values for t in done[1]]
    other = InMemoryStorage()
    searched(prober_of(16), DROP, tmp_path, storage=other, seed=4)
    assert [t.params for t in trials_of(other)] != [t.params for t in trials_of(whole)]


def test_limits_are_the_studys(tmp_path):
    storage = InMemoryStorage()
    searched(prober_of(7), DROP, tmp_path, storage=storage)
    assert len(trials_of(storage)) == 7
    more = searched(prober_of(10), DROP, tmp_path, storage=storage)
    assert len(trials_of(storage)) == 10 and more.last
    fewer = prober_of(5)  # finished: nothing is tried, all is known
    assert searched(fewer, DROP, tmp_path, storage=storage).last
    assert fewer.judge.calls == 0 and len(fewer.probes) == len(
        probes_of(optuna.load_study(study_name=None, storage=storage))
    )


def test_minutes_count_the_probes_of_all_workers(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(Formula):
        def small(self, plan: Any) -> Any:
            now[0] += 30
            return plan

    prober = prober_of(None)
    prober.limits = Limits(minutes=3.2)
    prober.__class__ = Slow
    storage = InMemoryStorage()
    searched(prober, DROP, tmp_path, storage=storage, pruning=False)
    done = [t for t in trials_of(storage) if t.state == TrialState.COMPLETE]
    assert len(done) == 7 and spent(done) == 210


def test_a_trial_that_fails_is_tried_again_but_not_for_ever(tmp_path):
    storage = InMemoryStorage()

    class Broken(Formula):
        def small(self, plan: Any) -> Any:
            raise MemoryError("too large")

    for _ in range(RETRIES + 1):
        prober = prober_of(5)
        prober.__class__ = Broken
        with pytest.raises(MemoryShortage, match=r"memory ran out during probe \d \(.*\) \(too large\)"):
            searched(prober, DROP, tmp_path, storage=storage)
    trials = trials_of(storage)
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert len(failed) == RETRIES + 1 and len({json.dumps(t.system_attrs["fixed_params"]) for t in failed}) >= 1
    searched(prober_of(5), DROP, tmp_path, storage=storage)
    assert sum(t.state in DONE for t in trials_of(storage)) == 5
