"""Masks that begin with a model pruned by scores."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import vitprune
from masks_parts import SETTINGS, TINY, pictures
from matrix import traced
from vitprune.allocate import Target
from vitprune.latency import Timing
from vitprune.masks import (
    Gates,
    MaskError,
    MaskSettings,
    Pressure,
    Search,
    Start,
    check_start,
    on_model,
    train_masks,
    vtp,
)
from vitprune.masks.relax import HardConcrete, Relaxation, StraightThrough, TopK
from vitprune.pipeline.begin import begin
from vitprune.progress import Silent
from zoo import CASES

KINDS = ("mlp", "qk", "v", "residual")
TARGET = Target("macs", 0.5)


def begun() -> tuple[Any, Any, Start, list[Any]]:
    """A tiny ViT in another basis, its trace, and what scores and a refit make of it."""
    case = CASES[TINY]
    ready = traced(case)
    batches = [images for images, _ in pictures()]
    source = vitprune.rotate(ready.model, ready.graph, batches, KINDS)
    scores = vitprune.score(ready.graph, source, "output-error", 0, batches, kinds=KINDS)
    plan = vitprune.allocate(ready.graph, scores, TARGET, scope="per-cost", kinds=KINDS, round_to=1)
    small = vitprune.shrink(source.model, ready.graph, plan, case.example(2))
    vitprune.refit(source, small, ready.graph, plan, batches)
    return source.model, ready.graph, Start(plan, small, scores), batches


@pytest.mark.parametrize("relaxation", [StraightThrough, HardConcrete, TopK])
@pytest.mark.parametrize("sharing", ["residual", "independent"])
def test_the_first_masked_model_is_the_refitted_one(relaxation: type[Relaxation], sharing: str) -> None:
    """Its outputs, its plan, and importances on the right side of the threshold, in the scores' order."""
    model, graph, start, batches = begun()
    model = copy.deepcopy(model)
    with torch.no_grad():
        want = start.model.eval()(batches[0])
    start.weights_(model, graph)
    gates = on_model(model, graph, KINDS, sharing=sharing, relaxation=relaxation())
    start.masks_(gates)
    with torch.no_grad():
        got = model.eval()(batches[0])
    assert gates.plan().groups == start.plan.groups
    if relaxation is not HardConcrete:  # whose factors are below 1 near the border
        assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())
    name = "blocks.0.mlp:mlp"
    theta = gates.scores()[name][0]
    kept = torch.zeros(len(theta), dtype=torch.bool)
    kept[list(start.plan.groups[name].kept[0])] = True
    assert bool(((torch.as_tensor(theta) > 0.5) == kept).all())
    inside = theta[kept.numpy()]
    assert (inside[start.scores[name][0][kept.numpy()].argsort(kind="stable")] == sorted(inside)).all()
    gates.close()


@pytest.mark.parametrize("relaxation", ["straight-through", "top-k"])
def test_the_search_stays_at_the_target(relaxation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first step; units change places; the plan at the end is within the target."""
    model, graph, start, _ = begun()
    costs: list[float] = []

    class Watched(Search):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            costs.append(float(self.cost().detach()))

    monkeypatch.setattr("vitprune.masks.train.Search", Watched)
    settings = MaskSettings(
        Pressure(target=TARGET), replace(SETTINGS, epochs=3), finetune=None, kinds=KINDS, mask_lr=0.02,
        relaxation=relaxation,
    )  # fmt: skip
    result = train_masks(
        model, graph, pictures(), pictures(16, shuffle=False), settings, start=start, example=CASES[TINY].example(2)
    )
    assert 0.35 < min(costs) <= max(costs) < 0.65, costs
    assert 0.48 < result.plan.obtained["macs"]["ratio"] <= 0.5
    assert result.plan.groups != start.plan.groups


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (MaskSettings(Pressure(weight=1.0)), "at a target"),
        (vtp(SETTINGS, rate=0.3), "at a target"),
        (MaskSettings(Pressure(target=TARGET), warmup=SETTINGS), "a warm-up is of a dense model"),
    ],
)
def test_what_cannot_begin_with_a_plan(settings: MaskSettings, words: str) -> None:
    """Each with its reason, before anything is computed."""
    with pytest.raises(MaskError, match=words):
        check_start(settings)


@pytest.mark.parametrize(("asked", "rates"), [(None, (1e-2, 3e-3)), (0.05, (0.05, 0.05))])
def test_masks_that_begin_with_a_plan_take_smaller_steps(
    asked: float | None, rates: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the rate is given."""
    model, graph, start, _ = begun()
    seen: list[float] = []

    class Watched(Search):
        def __init__(self, gates: Gates, *rest: Any, **more: Any) -> None:
            super().__init__(gates, *rest, **more)
            seen.append(gates.extra_parameters()["masks"][1])

    monkeypatch.setattr("vitprune.masks.train.Search", Watched)
    settings = MaskSettings(
        Pressure(target=TARGET), replace(SETTINGS, epochs=1), finetune=None, kinds=KINDS, mask_lr=asked
    )
    for given in (None, start):
        args = (copy.deepcopy(model), graph, pictures(), pictures(16, shuffle=False), settings)
        train_masks(*args, start=given, example=CASES[TINY].example(2))
    assert tuple(seen) == rates


def begun_masks(start: Start, model: Any, graph: Any) -> dict[str, Any]:
    """Group name -> (lanes, size) masks of all kinds, whole heads too, that begin so; their plan is the start's."""
    gates = on_model(copy.deepcopy(model), graph, (*KINDS, "heads"))
    start.masks_(gates)
    assert gates.plan().groups == start.plan.groups
    found = gates.scores()
    gates.close()
    return found


def test_masks_begin_as_far_from_the_threshold_as_their_values_from_the_border() -> None:
    """A group that lost nothing is near it only where its scores per parameter are near those of what was lost."""
    model, graph, start, _ = begun()
    heads = [g.name for g in graph.groups if g.kind == "heads"]
    scored = begun_masks(start, model, graph)
    assert heads and all(name in start.scores for name in heads)
    other = {name: values * 8 for name, values in start.scores.items()}
    scaled = begun_masks(replace(start, scores=other), model, graph)
    assert all(abs(scaled[name] - theta).max() < 1e-6 for name, theta in scored.items())
    for factor, expected in ((1e9, 1.0), (1e-9, 0.525)):
        other = {name: values * (factor if name in heads else 1) for name, values in start.scores.items()}
        found = begun_masks(replace(start, scores=other), model, graph)
        assert all(abs(found[name] - expected).max() < 1e-6 for name in heads)
        assert all((found[name] == theta).all() for name, theta in scored.items() if name not in heads)
    other = {name: -abs(values) for name, values in start.scores.items()}  # of no worth: all at the threshold, or open
    found = begun_masks(replace(start, scores=other), model, graph)
    assert all(np.isin(theta, np.float32([0.475, 0.525, 1.0])).all() for theta in found.values())
    unknown = {name: values for name, values in start.scores.items() if name not in heads}
    found = begun_masks(replace(start, scores=unknown), model, graph)
    assert all((found[name] == 1).all() for name in heads)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_masks_begin_with_any_scope(scope: Any) -> None:
    """The border is each group's own where values of two groups do not compare by cost."""
    model, graph, start, _ = begun()
    plan = vitprune.allocate(graph, start.scores, TARGET, scope=scope, kinds=KINDS, round_to=1)
    found = begun_masks(Start(plan, None, start.scores), model, graph)
    for name, group in plan.groups.items():
        theta = torch.as_tensor(found[name])
        kept = torch.zeros_like(theta, dtype=torch.bool)
        for lane, units in enumerate(group.kept):
            kept[lane, list(units)] = True
        if not kept.all():
            assert float(theta[kept].min()) < 0.7 and float(theta[~kept].max()) > 0.3, name


def test_gates_say_what_a_plan_keeps() -> None:
    """One number per unit, in the order of the masks."""
    _, graph, start, _ = begun()
    gates = Gates(traced(CASES[TINY]).model, graph, KINDS)
    table = gates.table(start.plan)
    assert len(table) == len(gates.alpha)
    assert int(table.sum()) == sum(sum(map(len, start.plan.groups[v.groups[0]].kept)) for v in gates.vectors)
    gates.close()


@pytest.mark.parametrize(
    ("more", "said", "starts"),
    [
        ({"freeze": ("qk",)}, "a first model by scores", True),
        ({"kinds": ("heads",)}, "nothing that scores decide", False),
        ({"kinds": ("heads", "qk")}, "scores alone do not come to the target", False),
    ],
)
def test_scores_cut_what_masks_decide_only(more: dict[str, Any], said: str, starts: bool) -> None:
    """Frozen kinds stay whole from the start; where scores cannot come to the target, the dense model is the start."""
    ready = traced(CASES[TINY])
    lines: list[str] = []

    class Listening(Silent):
        def line(self, text: str) -> None:
            lines.append(text)

    start = begin(
        copy.deepcopy(ready.model), ready.graph, MaskSettings(Pressure(target=TARGET), **more),
        [images for images, _ in pictures()], CASES[TINY].example(2), seed=0, timing=Timing(), progress=Listening(),
    ).start  # fmt: skip
    assert any(said in line for line in lines), lines
    assert (start is not None) is starts
    if start is not None:
        assert {start.plan.groups[name].kind for name in start.plan.pruned()} >= {"mlp", "v"}
        assert not any(start.plan.groups[name].kind in ("qk", "heads") for name in start.plan.pruned())
        turned = sorted(g.name for g in ready.graph.groups if g.kind in ("v", "residual"))  # q and k are frozen
        assert (start.plan.settings["rotated"], start.plan.settings["not_rotated"]) == (turned, {})
