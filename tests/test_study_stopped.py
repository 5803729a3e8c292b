"""Trials that are stopped early, and workers that fall silent."""

from __future__ import annotations

import time
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from torch import nn

from formula import Formula, quality
from study_parts import BUDGET, DROP, probe, prober_of, searched, trials_of
from vitprune.progress import Silent
from vitprune.search import Goal, Judge
from vitprune.search.beats import BEAT, Beat, Rhythm, Watch
from vitprune.search.errors import Stopped
from vitprune.search.glance import Glance
from vitprune.search.samplers import OUTCOME
from vitprune.search.storage import Reach
from vitprune.search.study import AFTER, give_up, probes_of

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
