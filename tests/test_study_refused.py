"""Studies and storages that are refused, waited for, or read again."""

from __future__ import annotations

import sqlite3
import time

import optuna
import pytest
from optuna.storages import InMemoryStorage
from sqlalchemy.exc import OperationalError
from torch import nn

from formula import formula_prober
from study_parts import DROP, probe, prober_of, searched, trials_of
from toys import toy_graph
from vitprune.digest import weights_digest
from vitprune.progress import Silent
from vitprune.search import Drop, Goal, Limits, Record, SearchError
from vitprune.search.storage import Reach, open_storage, shown
from vitprune.search.study import DONE

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
