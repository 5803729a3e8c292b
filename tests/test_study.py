"""Searches by Optuna in one process: what is proposed, kept, stopped and refused."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError
from torch import nn

from formula import Formula, formula_prober, quality
from toys import toy_graph
from vitprune.progress import Silent
from vitprune.search import Drop, Goal, Judge, Limits, Probe, Record, SearchError, Spent, drop, found, front
from vitprune.search.beats import BEAT, Beat, Rhythm, Watch
from vitprune.search.errors import Stopped
from vitprune.search.glance import Glance
from vitprune.search.identity import weights_digest
from vitprune.search.samplers import OUTCOME
from vitprune.search.storage import Reach, open_storage, shown
from vitprune.search.study import AFTER, DONE, RETRIES, give_up, probes_of, spent
from vitprune.search.ways import along, at_cost
from vitprune.search.worker import study_search
from vitprune.shortage import MemoryShortage

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


# ---- trials that are stopped early ----


def test_generations_hold_what_was_stopped_too(tmp_path):
    storage, prober = InMemoryStorage(), prober_of(14)
    searched(prober, DROP, tmp_path, "nsga2", storage=storage)
    stopped = [t for t in trials_of(storage) if "probe" not in t.user_attrs[OUTCOME]]
    assert len(stopped) == prober.judge.stopped > 0
    for trial in stopped:
        told = trial.user_attrs[OUTCOME]
        assert trial.state == TrialState.COMPLETE and told["excess"] > 0
        assert trial.values[1] == pytest.approx(trial.values[0] + told["excess"])
    assert len(probes_of(optuna.load_study(study_name=None, storage=storage))) == 14 - len(stopped)


def test_pruned_trials_are_no_probes_and_the_best_stays(tmp_path):
    bests = {}
    for pruning in (True, False):
        storage, prober = InMemoryStorage(), prober_of(30)
        bests[pruning] = searched(prober, DROP, tmp_path, storage=storage, pruning=pruning).best
        trials = trials_of(storage)
        pruned = [t for t in trials if t.state == TrialState.PRUNED]
        assert len(pruned) == prober.judge.stopped == 30 - len(prober.probes)
        assert bool(pruned) == pruning
        for trial in pruned:
            assert trial.user_attrs[OUTCOME]["images"] == 25_000 and "probe" not in trial.user_attrs[OUTCOME]
    assert bests[True].costs["macs"] <= bests[False].costs["macs"] + 0.02


def probe(number: int, macs: float, points: float, images: int = 4000) -> Probe:
    of = quality(points, images)
    return Probe(number, "x", "", {}, {"g": number}, {"macs": macs}, of, drop(quality(0, images), of), 1.0)


class Every4th:
    """What `Glance` needs of a judge."""

    dense = quality(0.0, 4000)

    def early(self, whole: Any) -> Any:
        hits = whole.hits[::4]
        return quality(100 * (1 - hits.mean()), len(hits))


def test_a_glance_stops_what_clearly_misses_the_goal():
    judge: Any = Every4th()
    stop = Glance(Goal("macs", 2.0), judge, [], 0.5)
    assert not stop(quality(2.5, 1000))  # 25 of 1000 lost: 2.5 +- 0.97 points
    assert stop(quality(3.2, 1000))  # 3.2 +- 1.09
    better = probe(1, 0.4, 0.5)
    assert Glance(Goal("macs", 2.0), judge, [better], 0.5)(quality(1.9, 1000))  # dearer, and clearly worse: 1.4 +- 0.73
    assert not Glance(Goal("macs", 2.0), judge, [better], 0.39)(quality(1.9, 1000))  # nothing is as cheap
    assert not Glance(Goal("macs", 2.0), judge, [better], 0.5)(quality(0.8, 1000))  # 0.3 +- 0.34
    assert Glance(BUDGET, judge, [probe(1, 0.5, 0.5)], 0.49)(quality(1.9, 1000))  # the same budget
    assert not Glance(BUDGET, judge, [], 0.49)(quality(90, 1000))


def test_a_judge_that_is_asked_early_gives_the_same_answers():
    torch.manual_seed(0)
    batches = [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in (10, 7, 1)]
    judge, model = Judge(nn.Linear(6, 3), batches), nn.Linear(6, 3)
    seen = []
    plain = judge(model)
    asked = judge(model, lambda early: bool(seen.append(early)))
    assert asked.right == plain.right and asked.divergence == pytest.approx(plain.divergence)
    (early,) = seen
    assert early.images == 3 + 2 + 1
    assert early.right == judge.early(plain).right
    first = torch.cat([images[::4] for images, _ in batches])
    labels = torch.cat([labels[::4] for _, labels in batches])
    assert early.top1 == pytest.approx(float((model(first).argmax(-1) == labels).float().mean()))
    with pytest.raises(Stopped) as stopped:
        judge(model, lambda early: True)
    assert stopped.value.quality == early


# ---- signs of life ----


def test_a_worker_is_silent_when_its_beat_does_not_change(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    study = optuna.create_study(directions=["minimize"] * 2)
    for who in ("alive", "dead", "me"):
        study.ask().set_user_attr(BEAT, [who, 0])
    study.ask()  # died before its first beat
    watch = Watch(Rhythm(1.0, 5.0))
    assert watch.silent(study.trials, "me") == []
    for step in range(1, 7):
        now[0] += 1
        study._storage.set_trial_user_attr(0, BEAT, ["alive", step])
        silent = [t.number for t in watch.silent(study.trials, "me")]
        assert silent == ([1, 3] if step == 6 else [])


def test_a_beat_counts_until_the_trial_ends():
    study = optuna.create_study(directions=["minimize"] * 2)
    trial = study.ask()
    with Beat(trial, "me", Rhythm(0.01, 1.0)):
        until = time.monotonic() + 20
        while study.trials[0].user_attrs.get(BEAT, ["", 0])[1] < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert study.trials[0].user_attrs[BEAT][0] == "me" and study.trials[0].user_attrs[BEAT][1] >= 3


def test_only_one_of_two_workers_takes_over():
    study = optuna.create_study(directions=["minimize"] * 2)
    trial, reach = study.ask(), Reach("here", Silent())
    trial.suggest_float("mlp", 0, 1)
    assert give_up(study, reach, 0) and not give_up(study, reach, 0)
    assert [t.state.name for t in study.trials] == ["FAIL", "WAITING"]
    assert study.trials[1].user_attrs[AFTER] == 0
    assert study.ask().suggest_float("mlp", 0, 1) == trial.params["mlp"]


def test_a_trial_that_others_gave_up_is_not_counted(tmp_path):
    storage = InMemoryStorage()

    class Frozen(Formula):  # a machine that slept: others gave its third trial up meanwhile
        def small(self, plan: Any) -> Any:
            if self.judge.calls == 2:
                study = optuna.load_study(study_name=None, storage=storage)
                assert give_up(study, Reach("here", Silent()), 2)
            return plan

    prober = prober_of(6)
    prober.__class__ = Frozen
    searched(prober, DROP, tmp_path, storage=storage, pruning=False)
    trials = trials_of(storage)
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 6
    (late,) = [t for t in trials if t.state == TrialState.FAIL]
    (again,) = [t for t in trials if t.user_attrs.get(AFTER) == late.number]
    assert again.user_attrs[OUTCOME]["seconds"] == 0  # its worker knew the answer


# ---- what is refused ----


def test_another_models_study_is_refused(tmp_path):
    storage = InMemoryStorage()
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    given = {"model": "timm:vit", "data": {"spec": "images"}, "weights": weights_digest(one)}
    searched(prober_of(3), DROP, tmp_path, storage=storage, name="s", identity=given)
    with pytest.raises(SearchError, match=r"the study 's' in InMemoryStorage was made with other settings \(weights: "):
        searched(
            prober_of(3), DROP, tmp_path, storage=storage, name="s", identity=given | {"weights": weights_digest(other)}
        )
    with pytest.raises(SearchError, match=r'data.spec: "images" there, "others" here'):
        searched(prober_of(3), DROP, tmp_path, storage=storage, name="s", identity=given | {"data": {"spec": "others"}})
    with pytest.raises(SearchError, match=r"goal.max_drop: 2.0 there, 1.0 here"):
        searched(prober_of(3), Goal("macs", 1.0), tmp_path, storage=storage, name="s", identity=given)
    with pytest.raises(SearchError, match=r'method: "bayes" there, "nsga2" here.*--study.*--force'):
        searched(prober_of(3), DROP, tmp_path, "nsga2", storage=storage, name="s", identity=given)
    with pytest.raises(SearchError, match=r"axes.*there"):
        searched(prober_of(3, per="module"), DROP, tmp_path, storage=storage, name="s", identity=given)
    searched(prober_of(4), DROP, tmp_path, "nsga2", storage=storage, name="s", force=True)
    assert sum(t.state in DONE for t in trials_of(storage)) == 4
    assert weights_digest(one) == weights_digest(one) != weights_digest(other)


def test_another_programs_study_is_refused(tmp_path):
    storage = InMemoryStorage()
    optuna.create_study(study_name="s", storage=storage)
    with pytest.raises(SearchError, match="not made by a search of vitprune; choose another name"):
        searched(prober_of(3), DROP, tmp_path, storage=storage, name="s")


def test_a_study_without_an_end_or_a_method_is_refused(tmp_path):
    with pytest.raises(SearchError, match="give --trials or --budget-minutes"):
        searched(prober_of(None), DROP, tmp_path)
    with pytest.raises(SearchError, match="bayes or nsga2, but got 'magic'"):
        searched(prober_of(3), DROP, tmp_path, "magic")


def test_nothing_that_holds_the_goal_is_an_error(tmp_path):
    prober = formula_prober(toy_graph(), lambda shares: 50.0, limits=Limits(4))
    with pytest.raises(SearchError, match="a drop of at most 2 points was not found"):
        searched(prober, DROP, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql://u:secret@h/x", r"must be sqlite.*journal.*postgresql.*got 'mysql://u:\*\*\*@h/x'"),
        ("redis://h", "must be sqlite"),
        ("study.db", "must be sqlite"),
        ("", "must be sqlite"),
        ("sqlite://", "must be sqlite"),
        ("sqlite:////nowhere/at/all/s.db", "unable to open database file; it must be a SQLite file, or none yet"),
        ("sqlite:///TMP/text", "file is not a database"),
        ("journal:", "a journal storage needs a file"),
        ("journal:/nowhere/at/all", "No such file or directory"),
        ("journal:TMP", "Is a directory"),
        ("journal:TMP/text", "is no journal of studies"),
        ("journal:TMP/list", "is no journal of studies"),
        ("postgresql+nothing://u:secret@h/x", r"\*\*\*@h/x"),
        ("postgresql://u:sec@ret@h/x", r"u:\*\*\*@h/x has an @ in its password, which must be written %40|driver"),
        ("postgresql://u:secret@localhost:9/x", r"u:\*\*\*@localhost:9/x: .*refused|driver that is not installed"),
    ],
)
def test_storages_that_cannot_be_used(text, message, tmp_path):
    (tmp_path / "text").write_text("no database, and no journal\n" * 40)
    (tmp_path / "list").write_text("[1, 2]\n")
    with pytest.raises(SearchError, match=message) as met:
        open_storage(text.replace("TMP", str(tmp_path)), tmp_path)
    assert "secret" not in str(met.value) and "sec@ret" not in str(met.value)


def test_storages_that_can(tmp_path):
    open_storage(None, tmp_path)
    open_storage(f"journal:{tmp_path}/j.log", tmp_path)
    assert (tmp_path / "study.db").is_file() and (tmp_path / "j.log").is_file()
    assert shown(None) == "study.db"
    assert shown("postgresql://me@h/x?sslpassword=abc&a=b") == "postgresql://me@h/x?sslpassword=***&a=b"


def test_a_storage_that_goes_away_is_waited_for(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers = [
        OperationalError("select", {}, Exception("server closed")),
        optuna.exceptions.StorageInternalError("x"),
        5,
    ]

    def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert Reach("here", Silent())(ask) == 5
    answers[:] = [OperationalError("select", {}, Exception("server closed"))] * 3
    with pytest.raises(SearchError, match=r"storage here cannot be reached any more \(server closed\).*goes on"):
        Reach("here", Silent(), patience=-1.0)(ask)


def test_a_locked_database_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("vitprune.search.storage.TIMEOUT_S", 0.1)
    storage = open_storage(None, tmp_path)
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SearchError, match="database is locked"):
        Reach("study.db", Silent(), patience=0.2)(lambda: optuna.create_study(storage=storage))
    other.execute("COMMIT")
    other.close()
    Reach("study.db", Silent())(lambda: optuna.create_study(storage=storage))


def test_a_record_learns_what_others_made(tmp_path):
    record = Record(tmp_path / "p.jsonl")
    record.add(probe(1, 0.5, 1.0))
    aside = record.copy()
    aside.learn([probe(1, 0.5, 1.0), probe(7, 0.4, 2.0)])
    assert [p.number for p in aside.probes] == [1, 2] and len(record.probes) == 1
    record.learn(aside.probes)
    assert Record(tmp_path / "p.jsonl").probes == aside.probes
    assert isinstance(aside.probes[1].lost, Drop)
