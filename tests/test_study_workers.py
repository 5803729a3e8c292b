"""Studies that several processes work on, one of which is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

import study_worker
import vitprune
from conftest import environment
from vitprune.search.samplers import OUTCOME
from vitprune.search.storage import open_storage
from vitprune.search.study import AFTER, probes_of

HERE = Path(__file__).parent
ENVIRONMENT = environment(PYTHONPATH=os.pathsep.join([str(Path(vitprune.__file__).parents[1]), str(HERE)]))
PATIENCE_S = 120


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.05)


def check_killed_worker(storage: str, folder: Path) -> None:
    """Two workers, one of which is killed in its third probe."""
    trials, script = 20, Path(study_worker.__file__)
    victim = start(script, storage, folder, trials, "victim", 3)
    wait_for(folder / "victim.hangs", victim)  # nobody else works yet, so that it has its third probe for sure
    other = start(script, storage, folder, trials, "other")
    wait_for(folder / "other.begun", other)
    time.sleep(0.5)  # it is alive meanwhile: its beats keep its trial
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    out, err = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0, err
    study = optuna.load_study(study_name="s", storage=open_storage(storage, folder))
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(done) == trials
    assert study.get_trials(states=(TrialState.RUNNING,)) == []
    (dead,) = study.get_trials(states=(TrialState.FAIL,))
    (again,) = [t for t in study.trials if t.user_attrs.get(AFTER) == dead.number]
    assert again in done and again.params == dead.params
    assert len({t.user_attrs[OUTCOME]["worker"] for t in done}) == 2
    complete = [t for t in done if t.state == TrialState.COMPLETE]
    probes = probes_of(study)
    assert len(probes) == len(complete)  # no plan twice
    best = min(p.costs["macs"] for p in probes if p.lost.points <= 2)
    assert out.split() == [str(best), "True"]


def test_a_killed_workers_trial_is_tried_again_sqlite(tmp_path):
    check_killed_worker(f"sqlite:///{tmp_path}/s.db", tmp_path)


def test_a_killed_workers_trial_is_tried_again_journal(tmp_path):
    check_killed_worker(f"journal:{tmp_path}/s.log", tmp_path)


def test_a_killed_workers_trial_is_tried_again_postgresql(tmp_path):
    url = os.environ.get("VITPRUNE_POSTGRESQL")
    if not url:
        pytest.skip("no server: VITPRUNE_POSTGRESQL=postgresql://USER:PASSWORD@HOST/DATABASE names an empty database")
    check_killed_worker(url, tmp_path)


def test_workers_that_begin_together_make_exactly_the_trials_asked_for(tmp_path):
    script, storage = Path(study_worker.__file__), f"sqlite:///{tmp_path}/s.db"
    workers = [start(script, storage, tmp_path, 16, name) for name in ("a", "b", "c")]
    ends = [worker.communicate(timeout=PATIENCE_S) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], ends
    study = optuna.load_study(study_name="s", storage=open_storage(storage, tmp_path))
    done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(done) == 16 and study.get_trials(states=(TrialState.RUNNING,)) == []
    best, last = zip(*(out.split() for out, _ in ends), strict=True)
    assert len(set(best)) == 1 and "True" in last  # all know the same; one saves (and who came when all was done)


@pytest.mark.slow
def test_two_commands_share_a_search(tmp_path):
    out = tmp_path / "run"
    command = ["-m", "vitprune", "search", "shipped:fmnist-vit", "--data", "fashion-mnist-sample", "--limit", "300"]
    command += ["--val-fraction", "0.3", "--max-drop", "12", "--method", "bayes", "--trials", "8", "--no-fixed"]
    command += ["--calibration", "16", "--device", "cpu", "--out", out, "--json"]
    workers = [start(*command), start(*command)]
    ends = [worker.communicate(timeout=280) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    told = [json.loads(out) for out, _ in ends]
    assert sorted(len(t["rows"]) > 0 for t in told) in ([False, True], [True, True])
    assert told[0]["found"]["sizes"] == told[1]["found"]["sizes"]
    numbers = [json.loads(line)["number"] for line in (out / "probes.jsonl").read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    (model,) = (path for path in (out / "models").iterdir() if path.is_dir())
    assert vitprune.load(model) is not None
    again = start(*command)  # a search that is finished: what was saved is shown
    shown = json.loads(again.communicate(timeout=280)[0])
    assert shown["found"]["sizes"] == told[0]["found"]["sizes"] and len(shown["rows"]) == 3


# ---- the page on clusters ----

PAGE = HERE.parent / "docs" / "search_cluster.md"


def blocks(language: str) -> list[str]:
    found, inside, current = [], False, []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if inside:
                found.append("\n".join(current) + "\n")
            inside, current = line == f"```{language}", []
        elif inside:
            current.append(line)
    return found


def test_the_pages_shell_scripts_can_be_parsed():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    scripts = blocks("bash")
    assert any("#SBATCH --array" in script for script in scripts)
    for script in scripts:
        run = subprocess.run([bash, "-n"], input=script, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_the_pages_manifest_is_an_indexed_job():
    documents = [d for text in blocks("yaml") for d in yaml.safe_load_all(text)]
    job = next(d for d in documents if d["kind"] == "Job")
    assert job["spec"]["completionMode"] == "Indexed" and job["spec"]["parallelism"] == job["spec"]["completions"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["vitprune", "search"] and "--storage" in container["args"]
    assert job["spec"]["template"]["spec"]["restartPolicy"] in ("Never", "OnFailure")
