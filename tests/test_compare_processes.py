"""Comparisons by several processes: who does which cell, what is left when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitprune
from compare_parts import write
from conftest import TINY, environment
from vitprune.errors import StoreError
from vitprune.pipeline import compare_run
from vitprune.pipeline.compare_folder import CompareFolder
from vitprune.pipeline.locks import locked
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.progress import Lines


def test_locks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    hold = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
    hold += "print('held', flush=True); time.sleep(60)"
    with locked(path) as mine, locked(path, wait=False) as other:
        assert mine and not other
    with locked(path, shared=True) as one, locked(path, shared=True, wait=False) as two:
        assert one and two
    process = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with locked(path, wait=False) as mine:
        assert not mine
    process.kill()
    process.wait()
    process.stdout.close()
    with locked(path, wait=False) as mine:
        assert mine
    with locked(path):
        child = os.fork()  # as data loaders do; it has the lock's file open, too
        if child == 0:
            time.sleep(60)
            os._exit(0)
    with locked(path, wait=False) as mine:
        assert mine
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with pytest.raises(StoreError, match="cannot write"), locked(tmp_path / "none" / "lock"):
        pass


def start(out: Path, log: Path) -> subprocess.Popen[bytes]:
    arguments = ["-m", "vitprune", "compare", str(out.parent / "c.toml"), "--out", str(out), "--device", "cpu"]
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, *arguments], env=environment(), stderr=file, stdout=subprocess.DEVNULL)


def wait_for(*conditions: Callable[[], Any]) -> None:
    until = time.monotonic() + 100
    while not all(condition() for condition in conditions):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_processes_share_the_cells(tmp_path: Path, image_folder: Path) -> None:
    """After a third one was killed in the middle of a cell."""
    write(tmp_path / "c.toml", image_folder, epochs=1, **{"batch-size": 8, "amp": "no"})
    out, logs = tmp_path / "o", [tmp_path / f"{name}.log" for name in ("killed", "one", "two")]
    killed = start(out, logs[0])
    wait_for(lambda: list(out.glob("runs/*/model.work/pruned-weights.done.json")))
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, logs[0].read_text()
    assert not list(out.glob("runs/*/done.json"))
    with locked(out / "locks" / "dense"):  # where a cell begins
        both = [start(out, log) for log in logs[1:]]
        wait_for(*(lambda log=log: "cell " in log.read_text() for log in logs[1:]))  # type: ignore[misc]
    assert [process.wait(timeout=120) for process in both] == [0, 0], [log.read_text() for log in logs[1:]]
    names = ["l2 macs=0.7 seed 0", "random macs=0.7 seed 0"]
    lines = [log.read_text().splitlines() for log in logs[1:]]
    begun = [[name for name in names if any(line.endswith(f": {name}") for line in part)] for part in lines]
    assert sorted(begun) == [names[:1], names[1:]]  # each by one of them
    assert sum("going on with the pruned model" in log.read_text() for log in logs[1:]) == 1
    table = json.loads((out / "table.json").read_text())
    assert [c["status"] for c in table["cells"]] == ["done"] * 2
    for cell in table["cells"]:
        times = json.loads((out / "runs" / cell["cell"] / "times.json").read_text())["seconds"]
        assert len(times) == 1
        assert (
            sum(p.numel() for p in vitprune.load(out / "runs" / cell["cell"] / "model").parameters())
            == cell["rows"][-1]["params"]
        )
    assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert not [p for p in out.rglob("*") if "partial" in p.name or p.name.endswith(".work")]


def test_cells_of_another_process_are_left_to_it_and_waited_for(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails there meanwhile is not tried a second time; one that is let go of is done here."""
    methods = {
        name: PruneSettings(None, name, calibration=0, rotate=False, refit=False) for name in ("magnitude-l2", "random")
    }
    what = {"spec": TINY, "data": str(image_folder), "out": tmp_path / "o", "methods": methods, "targets": ["macs=0.7"]}
    more = {"device": "cpu", "progress": Lines(sys.stdout)}
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patched:  # to know the cells
        patched.setattr(CompareFolder, "begin", lambda *_: 1 / 0)
        vitprune.compare(**what, **more)
    keys = list(json.loads((tmp_path / "o" / "compare.json").read_text())["cells"])
    folder, held = CompareFolder(tmp_path / "o"), [locked(tmp_path / "o" / "locks" / key) for key in keys]
    for lock in held:
        lock.__enter__()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            other = tmp_path / "o" / "runs" / keys[0]
            other.mkdir()
            (other / "failed.json").write_text(json.dumps({"error": "there"}))
            for lock in held:
                lock.__exit__(None, None, None)

    monkeypatch.setattr(compare_run.time, "sleep", sleep)
    found = vitprune.compare(**what, **more)
    assert len(slept) == 2 and folder.path == tmp_path / "o"
    assert [(c.status, c.point.error) for c in found.cells] == [("failed", "there"), ("done", "")]
    said = capsys.readouterr().out
    assert said.count("waiting for 2 of 2 cells, which other processes are at") == 1
    assert "cell 1 of 2: magnitude-l2 macs=0.7 seed 0: failed meanwhile, in another process" in said
