"""Runs that are killed at random moments and started again: KIND SEEDS FOLDER, run as a script; prints JSON.

All runs are children of one process that has imported everything and computed nothing, so that each costs no start.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm  # noqa: F401  imported once, for all children
import torch

import vitprune
from vitprune.allocate import Target
from vitprune.errors import VitpruneError
from vitprune.pipeline.learned import Learned
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.search_run import run_search
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.recover import TrainSettings, Upkeep

SPEC, DATA, HALF = "shipped:fmnist-vit", DataSettings("fashion-mnist-sample", limit=80), Target("macs", 0.5)
TUNED = TrainSettings(epochs=2, batch_size=16, lr=1e-4)
SAVES = 25


def prune(out: Path) -> None:
    """Scores, refit, two epochs."""
    settings = PruneSettings(HALF, calibration=48)
    run_prune(SPEC, DATA, settings, TUNED, out, device="cpu", upkeep=Upkeep(checkpoint_every=2))


def masks(out: Path) -> None:
    """Two epochs of masks, then one of fine-tuning."""
    settings = PruneSettings(HALF, method="masks", learned=Learned(search=TUNED, start="dense"))
    run_prune(SPEC, DATA, settings, TrainSettings(epochs=1, batch_size=16), out, device="cpu")


def search(out: Path) -> None:
    """Some probes, and the model that they lead to."""
    settings = SearchSettings(target=Target("macs", 0.6), calibration=48, trials=4, baselines=False)
    run_search(SPEC, DATA, settings, None, out, device="cpu")


def two_models() -> tuple[Any, list[tuple[Any, Any]]]:
    """The model they are cut from, and two smaller ones with their plans."""
    origin = vitprune.load_model(SPEC)
    graph = vitprune.trace(origin)
    scores = vitprune.score(graph, origin)
    made = []
    for share in (0.5, 0.8):
        plan = vitprune.allocate(graph, scores, f"macs={share}")
        made.append((vitprune.shrink(origin, graph, plan), plan))
    return origin, made


def save(out: Path) -> None:
    """One folder, replaced over and over by one of two models."""
    origin, made = two_models()
    (out.parent / f"{out.name}.begun").touch()
    for turn in range(SAVES):
        small, plan = made[turn % 2]
        vitprune.save(out, small, plan, origin, force=True)


RUNS: dict[str, Callable[[Path], None]] = {"prune": prune, "masks": masks, "search": search, "save": save}


def known(folder: Path) -> list[str]:
    """Digests of the two models."""
    origin, made = two_models()
    for number, (small, plan) in enumerate(made):
        vitprune.save(folder / str(number), small, plan, origin)
    return models(folder)


def child(work: Callable[[], Any], log: Path) -> int:
    """The number of a new process that does the work; its output goes to the log."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, log: Path) -> None:
    """Returns when the process ended well."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()


def digest(folder: Path) -> str:
    """Of plan and tensors of a saved folder."""
    model, plan = vitprune.load(folder), json.loads((folder / "plan.json").read_text())
    parts = hashlib.sha256(json.dumps(plan["groups"]).encode())
    for name, tensor in model.state_dict().items():
        parts.update(name.encode() + tensor.numpy().tobytes())
    return parts.hexdigest()


def loadable(root: Path) -> dict[str, str]:
    """Everything below the folder that loads as a model, and what it is; hidden folders too."""
    found = {}
    for plan in sorted(root.rglob("plan.json")):
        try:
            found[str(plan.parent.relative_to(root))] = digest(plan.parent)
        except VitpruneError:
            continue
    return found


def models(root: Path) -> list[str]:
    """Digests of what can be loaded by a name that is not hidden."""
    return sorted({d for place, d in loadable(root).items() if not any(p.startswith(".") for p in Path(place).parts)})


def told(work: Callable[[], Any], folder: Path) -> Any:
    """What the work gives, as JSON, in a process of its own: this one computes nothing."""
    path = folder / "told.json"
    ended(child(lambda: path.write_text(json.dumps(work())), folder / "told.log"), folder / "told.log")
    return json.loads(path.read_text())


def kill(kind: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One run that is killed after a random part of its time, and what it left; then the run that goes on."""
    root = folder / f"{kind}-{seed}"
    root.mkdir()
    out, log = root / "out", folder / f"{kind}-{seed}.log"
    pid = child(lambda: RUNS[kind](out), log)
    while kind == "save" and not (root / "out.begun").exists():
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0.0, 1.0) * seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    left = told(lambda: {"all": loadable(root), "open": models(root)}, folder)
    begun = time.monotonic()
    if kind == "save" or not (out / "plan.json").exists():  # else it had ended, but for its last lines
        ended(child(lambda: RUNS[kind](out), log), log)
    again = {"seed": seed, "killed": os.WIFSIGNALED(status), **left, "after": told(lambda: models(root), folder)}
    again["seconds"], again["beside"] = time.monotonic() - begun, sorted(p.name for p in root.iterdir())
    shutil.rmtree(root)
    return again


def main(kind: str, seeds: int, folder: Path) -> None:
    """An undisturbed run, then one per seed."""
    straight = folder / "straight"
    straight.mkdir()
    begun = time.monotonic()
    pid = child(lambda: RUNS[kind](straight / "out"), folder / "straight.log")
    while kind == "save" and not (straight / "out.begun").exists():
        begun = time.monotonic()
        time.sleep(0.01)
    ended(pid, folder / "straight.log")
    seconds = time.monotonic() - begun
    wanted = told(lambda: models(straight), folder)
    either = told(lambda: known(folder / "known"), folder) if kind == "save" else []
    rows = [kill(kind, seed, seconds, folder) for seed in range(seeds)]
    print(json.dumps({"seconds": seconds, "wanted": wanted, "known": either, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
