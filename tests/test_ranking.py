"""What runs of one study have in common: made once, the same as made alone, and never another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import TINY
from vitprune.allocate import Target
from vitprune.data import blended
from vitprune.pipeline import ranking
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.ranking import Ranking, Rankings, ranking_key
from vitprune.pipeline.setup import DataSettings, open_both
from vitprune.pipeline.sweep_run import points_of, run_sweep
from vitprune.progress import Silent
from vitprune.recover import TrainSettings
from vitprune.rotate import Rotated
from vitprune.trace import trace


def test_runs_of_a_sweep_are_those_alone(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated and scored once for three targets, with the same units and the same weights as one by one."""
    made = []
    once = ranking.ranked
    monkeypatch.setattr("vitprune.pipeline.prune_stages.ranked", lambda *given: made.append(1) or once(*given))
    data, base = DataSettings(str(image_folder)), PruneSettings(None, calibration=24, round_to=2)
    targets = ("macs=0.7", "params=0.6", "macs=0.5")
    run_sweep(TINY, data, base, points_of(targets), None, tmp_path / "sweep", device="cpu")
    assert len(made) == 1
    for target in targets:
        alone = tmp_path / target
        settings = replace(base, target=Target.parse(target))
        found = run_prune(TINY, data, settings, None, alone, device="cpu")
        assert found.plan.settings["rotated"]
        together = tmp_path / "sweep" / "points" / target.replace("=", "-")
        assert (together / "plan.json").read_text() == (alone / "plan.json").read_text()
        a, b = (load_file(folder / "model.safetensors") for folder in (together, alone))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert len(made) == 4


def test_a_key_is_of_all_that_decides_a_ranking(image_folder: Path) -> None:
    data = DataSettings(str(image_folder))
    opened, images = open_both(TINY, data, TrainSettings(), device="cpu", progress=Silent(), calibration=24)
    graph = trace(opened.model, (torch.zeros(2, 3, *opened.loaded.preprocessing.size),))
    base = PruneSettings(Target("macs", 0.5), "output-error")
    same: dict[str, Any] = {"target": Target("params", 0.2), "scope": "global", "round_to": 2, "minimum": {"mlp": 8}}
    same |= {"protect": ("a",), "layer_ratios": (("a", 0.5),), "refit": False, "steps": 3, "latency_batch": 8}

    def key(settings: PruneSettings = base, seed: int = 0, given: Any = images, spec: str = "a") -> str:
        return ranking_key(opened.model, graph, settings, seed, given, {"spec": spec})

    for name, value in same.items():
        assert key(replace(base, **{name: value})) == key(), name
    others = [key()]
    for name, value in {
        "method": "energy",
        "rotate": False,
        "kinds": ("mlp",),
        "ratios": {"residual": 0.5},
        "reduction": "max",
        "normalisation": "mean",
        "over": "worst",
        "calibration": 12,
        "blend": 0.5,
    }.items():
        others.append(key(replace(base, **{name: value})))
    assert images.calibration is not None
    half = blended(images.calibration, 0.5, opened.loaded.preprocessing)
    others += [key(seed=1), key(spec="b"), key(given=replace(images, calibration=None))]
    others += [key(given=replace(images, calibration=half))]
    with torch.no_grad():
        next(opened.model.parameters()).flatten()[0] += 1
    others.append(key())
    assert len(set(others)) == len(others)


def test_the_oldest_go_when_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the others had cost is counted each time that they are taken again."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def one(name: str, floats: int = 0) -> Ranking:
        made.append(name)
        clock[0] += len(name)
        rotated = Rotated(nn.Linear(floats, 1, bias=False), {}, {}, 0.0) if floats else None
        return Ranking(rotated, {name: np.zeros((1, 1))})

    made: list[str] = []
    rankings = Rankings(limit=100)
    for name, floats in (("a", 10), ("b", 10), ("scores", 0), ("a", 10), ("c", 10), ("a", 10), ("scores", 0)):
        found = rankings.get(name, lambda name=name, floats=floats: one(name, floats), Silent())  # type: ignore[misc]
        assert list(found.scores) == [name]
    assert made == ["a", "b", "scores", "c"]  # b went for c, as a had been used since
    assert rankings.saved_s == 1 + 1 + 6
    rankings.get("b", lambda: one("b", 10), Silent())
    rankings.get("large", lambda: one("large", 100), Silent())
    rankings.get("large", lambda: one("large", 100), Silent())  # the last one stays, whatever its size
    assert made[4:] == ["b", "large"]
