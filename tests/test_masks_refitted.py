"""Sizes that masks found: the dense weights, refitted to them, against those trained on the way."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitprune
from vitprune.allocate import Target
from vitprune.data import open_data
from vitprune.evaluate import accuracy
from vitprune.masks import train_masks
from vitprune.models import example
from vitprune.pipeline import begin, learned, prune_stages, refitted
from vitprune.pipeline.begin import begin_once
from vitprune.pipeline.learned import Learned
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.refitted import better_model
from vitprune.pipeline.setup import DataSettings
from vitprune.pipeline.stages import WorkFolder
from vitprune.progress import Silent
from vitprune.recover import TrainSettings
from vitprune.rotate import RotateError

SPEC, DATA, HALF = "shipped:fmnist-vit", DataSettings("fashion-mnist-sample", limit=160), Target("macs", 0.5)
SHORT = TrainSettings(epochs=1, batch_size=16, lr=1e-4, warmup_epochs=0.0)
DENSE = PruneSettings(HALF, "masks", calibration=96, learned=Learned(SHORT, mask_lr=0.2, start="dense"))


def test_a_short_search_goes_on_with_the_refitted_weights(tmp_path: Path) -> None:
    """They are measured in a row of their own and saved; the plan says why."""
    found = run_prune(SPEC, DATA, DENSE, None, tmp_path / "out", device="cpu")
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["dense", "pruned", "refitted"]
    assert rows["refitted"].top1 > rows["pruned"].top1 + 0.1
    assert found.plan.settings["weights"] == "refitted"
    assert any("images with the dense weights, refitted, and" in note for note in found.plan.settings["notes"])
    origin = vitprune.load_model(SPEC)
    test = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit).test
    assert test is not None
    assert accuracy(vitprune.load(tmp_path / "out"), test).top1 == rows["refitted"].top1


def test_masks_that_begin_with_scores_are_refitted_in_their_basis(tmp_path: Path, monkeypatch: Any) -> None:
    """What is refitted is the rotated dense model, which computes as the dense one does, not the start's weights."""
    seen: dict[str, Any] = {}

    def spied(trained: Any, dense: Any, *rest: Any, **more: Any) -> Any:
        seen["dense"] = copy.deepcopy(dense)
        return better_model(trained, dense, *rest, **more)

    monkeypatch.setattr(prune_stages, "better_model", spied)
    settings = replace(DENSE, learned=replace(DENSE.learned, start="score"), kinds=("mlp", "qk", "v", "residual"))
    found = run_prune(SPEC, DATA, settings, None, tmp_path / "out", device="cpu")
    assert found.plan.settings["start"] == "score" and "residual" in found.plan.settings["rotated"]
    origin, dense = vitprune.load_model(SPEC), seen["dense"]
    image = torch.randn(4, *example(origin.preprocessing).shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(dense(image), origin.model(image), atol=1e-3, rtol=1e-3)
    assert not torch.equal(dense.head.weight, origin.model.head.weight)
    rows = {row.name: row for row in found.rows}
    assert ("refitted" in rows) == (found.plan.settings["weights"] == "refitted")
    assert found.plan.settings["units"] in ("masks", "scores")
    assert max(row.top1 for row in rows.values() if row.name != "dense") > 0.8


def test_a_run_goes_on_with_what_scores_chose_where_the_search_was_worse(tmp_path: Path, monkeypatch: Any) -> None:
    """Its sizes and weights are saved and measured, and what a run says that goes on is the same."""

    def worse(begun: Any, *rest: Any, **more: Any) -> Any:
        plan, model, histories = learned.learn(begun, *rest, **more)
        return plan, random_small(model), histories

    monkeypatch.setattr(prune_stages, "learn", worse)
    monkeypatch.setattr(refitted, "refit", lambda dense, small, *rest, **more: scramble_(small))
    settings = replace(DENSE, learned=replace(DENSE.learned, start="score"), kinds=("mlp", "qk", "v", "residual"))
    found = run_prune(SPEC, DATA, settings, None, tmp_path / "out", device="cpu")
    assert found.plan.settings["units"] == "scores"
    rows = {row.name: row for row in found.rows}
    assert rows["refitted"].macs == found.plan.obtained["macs"]["value"] and rows["refitted"].top1 > 0.8
    origin = vitprune.load_model(SPEC)
    test = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit).test
    assert test is not None
    small = vitprune.load(tmp_path / "out")
    assert accuracy(small, test).top1 == rows["refitted"].top1
    assert vitprune.trace(small, (example(origin.preprocessing),)).cost()[0] == rows["refitted"].macs


def test_without_refit_the_trained_weights_go_on(tmp_path: Path) -> None:
    """As with no calibration images."""
    found = run_prune(SPEC, DATA, replace(DENSE, refit=False), None, tmp_path / "out", device="cpu")
    assert [row.name for row in found.rows] == ["dense", "pruned"] and "weights" not in found.plan.settings
    asked = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]["prune"]
    assert (asked["refit"], asked["calibration"]) == (False, 0)


def test_the_trained_weights_stay_where_they_are_better() -> None:
    """Here because what is refitted is no trained model; nothing is changed of either."""
    origin = vitprune.load_model(SPEC)
    graph, image = vitprune.trace(origin), (example(origin.preprocessing),)
    data = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit, calibration=96)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.8")
    trained, random = vitprune.shrink(origin, graph, plan), copy.deepcopy(origin.model)
    with torch.no_grad():
        for parameter in random.parameters():
            parameter.normal_(std=0.02)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (trained, random)]
    assert data.calibration is not None
    args = (graph, plan, data.calibration, data.val)
    kept = better_model(trained, random, *args, example=image, progress=Silent())
    assert kept.model is trained and "the trained ones are kept" in kept.said
    assert (kept.plan.settings["weights"], kept.plan.settings["units"]) == ("trained", "masks")
    for model, was in zip((trained, random), before, strict=True):
        assert all(torch.equal(v, was[k]) for k, v in model.state_dict().items())
    kept = better_model(random_small(trained), origin.model, *args, example=image, progress=Silent())
    assert "the refitted ones are kept" in kept.said and kept.plan.settings["weights"] == "refitted"
    assert accuracy(kept.model, data.val).top1 > 0.8 and kept.plan.groups == plan.groups


def test_a_search_that_found_nothing_better_leaves_what_it_began_with() -> None:
    """The plan becomes the start's, with the search's settings and the start's remarks; one that is worse does not."""
    origin = vitprune.load_model(SPEC)
    graph, image = vitprune.trace(origin), (example(origin.preprocessing),)
    data = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit, calibration=96)
    scores = vitprune.score(graph, origin)
    plan = vitprune.allocate(graph, {name: -values for name, values in scores.items()}, "macs=0.5", scope="local")
    plan = replace(plan, settings={**plan.settings, "sharing": "residual", "behind": {"head.weight": 3}})
    first = vitprune.allocate(graph, scores, "macs=0.8").noted(["few images"])
    good, bad = vitprune.shrink(origin, graph, first), vitprune.shrink(origin, graph, plan)
    assert data.calibration is not None
    args = (random_small(bad), random_small(origin.model), graph, plan, data.calibration, data.val)
    more: dict[str, Any] = {"example": image, "progress": Silent()}
    kept = better_model(*args, start=(first, good), **more)
    assert kept.model is good and kept.said.endswith("before the search: these are kept")
    assert (kept.plan.groups, kept.plan.obtained) == (first.groups, first.obtained)
    found = kept.plan.settings
    assert [found[k] for k in ("units", "weights", "behind", "sharing")] == ["scores", "refitted", {}, "residual"]
    assert found["notes"][-2:] == ["few images", kept.said]
    kept = better_model(*args, start=(first, random_small(good)), **more)
    assert kept.plan.groups == plan.groups and "few images" not in kept.plan.settings["notes"]
    assert (kept.plan.settings["units"], kept.plan.settings["behind"]) == ("masks", {"head.weight": 3})


def test_a_search_that_changed_no_unit_refits_nothing_again(monkeypatch: Any) -> None:
    """What it began with is the refitted model, with what was remarked of that refit."""
    origin = vitprune.load_model(SPEC)
    graph, image = vitprune.trace(origin), (example(origin.preprocessing),)
    data = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit, calibration=96)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.8")
    small = vitprune.shrink(origin, graph, plan)
    assert data.calibration is not None
    monkeypatch.setattr(refitted, "refit", lambda *_rest, **_more: pytest.fail("refitted again"))
    args = (origin.model, graph, plan, data.calibration, data.val)
    more: dict[str, Any] = {"example": image, "progress": Silent(), "start": (plan.noted(["few images"]), small)}
    kept = better_model(random_small(small), *args, **more)
    assert kept.model is small and "few images" in kept.plan.settings["notes"]
    assert [kept.plan.settings[k] for k in ("units", "weights")] == ["masks", "refitted"]
    trained = copy.deepcopy(small)
    kept = better_model(trained, *args, **more)
    assert kept.model is trained and "few images" not in kept.plan.settings["notes"]


def random_small(model: torch.nn.Module) -> torch.nn.Module:
    """The same sizes, with weights that know nothing."""
    small = copy.deepcopy(model)
    scramble_(small)
    return small


def scramble_(model: torch.nn.Module) -> None:
    """Gives it weights that know nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)


@pytest.mark.parametrize(
    ("settings", "refits", "images"),
    [
        (DENSE, True, 96),
        (replace(DENSE, method="vtp", target=None, learned=Learned(SHORT, rate=0.4)), True, 96),
        (replace(DENSE, target=None, learned=Learned(SHORT, weight=1.0)), True, 96),
        (replace(DENSE, learned=replace(DENSE.learned, sharing="blocks", start="auto")), True, 96),
        (replace(DENSE, learned=replace(DENSE.learned, start="score")), True, 96),
        (replace(DENSE, learned=replace(DENSE.learned, warmup=SHORT)), False, 0),
        (replace(DENSE, calibration=0), False, 0),
        (replace(DENSE, refit=False), False, 0),
    ],
)
def test_when_dense_weights_are_refitted(settings: PruneSettings, refits: bool, images: int) -> None:
    """Where masks begin with trained weights, and there are images; elsewhere none are opened for it."""
    found = settings.without_scores()
    assert (found.refit, found.calibration) == (refits, images)


ROTATED = replace(DENSE, kinds=("mlp", "qk", "v", "residual"), learned=replace(DENSE.learned, start="rotated"))


def test_the_whole_model_can_be_rotated_first(tmp_path: Path, monkeypatch: Any) -> None:
    """Masks begin with the dense function in another basis, all units open; what is refitted is of that basis, too."""
    seen: dict[str, Any] = {}

    def spied(model: Any, *rest: Any, **more: Any) -> Any:
        seen["model"], seen["start"] = copy.deepcopy(model), more["start"]
        return train_masks(model, *rest, **more)

    monkeypatch.setattr(learned, "train_masks", spied)
    found = run_prune(SPEC, DATA, ROTATED, None, tmp_path / "out", device="cpu")
    assert seen["start"] is None
    assert found.plan.settings["start"] == "rotated" and "residual" in found.plan.settings["rotated"]
    origin = vitprune.load_model(SPEC)
    image = torch.randn(4, *example(origin.preprocessing).shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(seen["model"].eval()(image), origin.model(image), atol=1e-3, rtol=1e-3)
    assert not torch.equal(seen["model"].head.weight, origin.model.head.weight)
    rows = {row.name: row for row in found.rows}
    assert rows["refitted"].top1 > 0.8 and rows["refitted"].top1 > rows["pruned"].top1
    test = open_data(DATA.spec, origin.preprocessing, limit=DATA.limit).test
    assert test is not None
    assert accuracy(vitprune.load(tmp_path / "out"), test).top1 == rows["refitted"].top1


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (replace(DENSE, learned=replace(DENSE.learned, start="auto")), "score"),
        (replace(DENSE, target=None, learned=Learned(SHORT, weight=1.0)), "rotated"),
        (replace(DENSE, method="vtp", target=None, learned=Learned(SHORT, rate=0.4)), "rotated"),
        (replace(DENSE, method="vtp", target=None, learned=Learned(SHORT, rate=0.4, start="dense")), "dense"),
        (replace(DENSE, learned=replace(DENSE.learned, start="auto", warmup=SHORT)), "dense"),
        (replace(DENSE, calibration=0, learned=replace(DENSE.learned, start="auto")), "dense"),
    ],
)
def test_what_masks_begin_with(settings: PruneSettings, start: str) -> None:
    """Scores at a target, a rotated model without one, the dense model before a warm-up and without images."""
    assert settings.without_scores().learned.start == start


def test_a_run_goes_on_with_the_basis_that_it_began_in(tmp_path: Path) -> None:
    """What was left in the work folder is read again, not made anew."""
    origin = vitprune.load_model(SPEC)
    graph, work = vitprune.trace(origin), WorkFolder.open(tmp_path / "out", {})
    images = list(open_data(DATA.spec, origin.preprocessing, limit=64, calibration=32).calibration or [])
    settings, image = ROTATED.mask_settings(), (example(origin.preprocessing),)
    about: dict[str, Any] = {"seed": 0, "timing": ROTATED.timing, "progress": Silent()}
    first = begin_once(work, "rotated", copy.deepcopy(origin.model), graph, settings, images, image, **about)
    again = begin_once(work, "rotated", copy.deepcopy(origin.model), graph, settings, [], image, **about)
    assert first.start is None and again.start is None and again.basis == first.basis
    after = again.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in first.model.state_dict().items())
    assert not torch.equal(after["head.weight"], origin.model.head.weight)


def test_a_model_that_cannot_be_rotated_is_taken_as_it_is(monkeypatch: Any) -> None:
    """The reason is said; a search that would do without scores does without a rotation, too."""
    lines: list[str] = []

    class Listening(Silent):
        def line(self, text: str) -> None:
            lines.append(text)

    def refuses(*_: Any) -> Any:
        raise RotateError("the model cannot be run operator by operator")

    monkeypatch.setattr(begin, "rotate", refuses)
    origin = vitprune.load_model(SPEC)
    found = begin.in_basis(origin.model, vitprune.trace(origin), ROTATED.mask_settings(), [], Listening())
    assert found.model is origin.model and found.start is None and found.basis["rotated"] == []
    assert any("as it is: the model cannot be run operator by operator" in line for line in lines)
