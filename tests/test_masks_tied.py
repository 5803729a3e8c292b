"""Masks that are tied across blocks: the same units of every block, from the first model to the last."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import vitprune
from masks_parts import SETTINGS, TINY, pictures, run_masks, search_settings
from matrix import traced
from vitprune.allocate import Target
from vitprune.latency import Timing
from vitprune.masks import Gates, MaskError, MaskSettings, Pressure, Start, on_model
from vitprune.masks.vectors import ties
from vitprune.pipeline.begin import begin
from vitprune.plan import Plan
from vitprune.progress import Silent
from vitprune.rotate import arrange
from zoo import CASES

TARGET = Target("macs", 0.5)
BLOCKS = MaskSettings(Pressure(target=TARGET), sharing="blocks")


def blocks_of(plan: Plan, place: str) -> list[Any]:
    """What the plan keeps at one place of every block."""
    return [g.kept for name, g in plan.groups.items() if name.endswith(place)]


def begun(settings: MaskSettings = BLOCKS) -> tuple[Any, Start]:
    case = CASES[TINY]
    ready = traced(case)
    found = begin(
        copy.deepcopy(ready.model), ready.graph, settings, [images for images, _ in pictures()], case.example(2),
        seed=0, timing=Timing(), progress=Silent(),
    )  # fmt: skip
    assert found.start is not None
    return found.model, found.start


@pytest.mark.parametrize("asked", ["macs=0.45", "macs=0.5", "params=0.45", "params=0.55"])
@pytest.mark.parametrize("start", [False, True])
def test_blocks_end_with_the_same_units(asked: str, start: bool) -> None:
    """At targets that one more unit in a single block would still meet."""
    pressure = Pressure(target=Target.parse(asked))
    settings = search_settings(
        pressure=pressure, search=replace(SETTINGS, epochs=2), warmup=None, finetune=None, sharing="blocks",
        kinds=("mlp", "qk", "v", "residual"),
    )  # fmt: skip
    if start:
        _, found = begun(settings)
        result = run_masks(settings, start=found)
    else:
        result = run_masks(settings)
    metric, value = asked.split("=")
    assert float(value) * 0.96 < result.plan.obtained[metric]["ratio"] <= float(value)
    for place in ("mlp:mlp", "attn:qk", "attn:v"):
        first, *others = blocks_of(result.plan, place)
        assert others and all(other == first for other in others), place


def test_a_first_model_by_scores_has_the_same_units_in_all_blocks() -> None:
    """The best of each, and the masked model is the refitted one."""
    ready, (source, start) = traced(CASES[TINY]), begun()
    images = next(iter(pictures()))[0]
    with torch.no_grad():
        dense, turned, want = (m.eval()(images) for m in (ready.model, source, start.model))
    torch.testing.assert_close(turned, dense, atol=1e-4, rtol=1e-4)
    for place in ("mlp:mlp", "attn:qk", "attn:v"):
        kept, *others = blocks_of(start.plan, place)
        assert all(other == kept for other in others)
        assert all(lane == tuple(range(len(lane))) for lane in kept), place  # the units of the first ranks
    assert start.plan.settings["arranged"] == ["blocks.0.mlp:mlp", "blocks.1.mlp:mlp"]
    assert 0.47 < start.plan.obtained["macs"]["ratio"] <= 0.5
    start.weights_(source, ready.graph)
    gates = on_model(source, ready.graph, ("mlp", "qk", "v", "residual"), sharing="blocks")
    start.masks_(gates)
    assert gates.plan().groups == start.plan.groups
    with torch.no_grad():
        torch.testing.assert_close(source.eval()(images), want, atol=1e-4, rtol=1e-4)
    gates.close()


def test_a_plan_whose_blocks_differ_cannot_begin_tied_masks() -> None:
    """It names the first group that keeps other units."""
    ready, (_, start) = traced(CASES[TINY]), begun()
    name = "blocks.1.mlp:mlp"
    group = start.plan.groups[name]
    other = replace(group, kept=(tuple(range(group.size - group.kept_size, group.size)),))
    bent = replace(start, plan=replace(start.plan, groups={**start.plan.groups, name: other}))
    gates = Gates(copy.deepcopy(ready.model), ready.graph, ("mlp",), sharing="blocks")
    with pytest.raises(MaskError, match=r"blocks\.1\.mlp:mlp than in blocks\.0\.mlp:mlp"):
        bent.masks_(gates)
    gates.close()


def test_units_in_the_order_of_their_scores() -> None:
    """Outputs stay; scored again, the units stand where the scores say, each lane by itself."""
    ready = traced(CASES[TINY])
    batches = [images for images, _ in pictures()]
    scores = vitprune.score(ready.graph, ready.model, "energy", batches=batches)
    names = ["blocks.0.mlp:mlp", "blocks.1.attn:v"]
    done = arrange(ready.model, ready.graph, scores, names, batches[0])
    assert (list(done.names), done.left) == (names, {})
    again = vitprune.score(ready.graph, done.model, "energy", batches=batches)
    for name in names:
        assert (np.diff(done.scores[name], axis=1) <= 0).all() and (np.diff(scores[name], axis=1) > 0).any()
        np.testing.assert_allclose(again[name], done.scores[name], rtol=1e-3, atol=1e-6 * scores[name].max())
    assert np.array_equal(done.scores["blocks.0.attn:v"], scores["blocks.0.attn:v"])


def test_rotary_pairs_move_with_their_angles() -> None:
    """The table of angles is among the members of the group."""
    case = CASES["timm/eva02_tiny/fused"]
    ready = traced(case)
    (name,) = (g.name for g in ready.graph.groups if g.kind == "qk")
    scores = {g.name: np.random.default_rng(0).random((g.lanes, g.size)) for g in ready.graph.groups}
    done = arrange(ready.model, ready.graph, scores, [name], case.example(2)[0])
    assert done.names == (name,) and (np.diff(done.scores[name], axis=1) <= 0).all()


def test_units_that_cannot_be_moved_stay() -> None:
    """A group of which the reader is unknown: moving what it knows would change the outputs, and is undone."""
    ready, name = traced(CASES[TINY]), "blocks.0.mlp:mlp"
    writers = replace(ready.graph[name], members=tuple(m for m in ready.graph[name].members if m.dim == 0))
    graph = replace(ready.graph, groups=(writers,), _by_name={})
    scores = {name: np.random.default_rng(0).random((1, graph[name].size))}
    done = arrange(ready.model, graph, scores, [name], CASES[TINY].example(2)[0])
    assert done.names == () and "the outputs would change" in done.left[name]
    assert done.scores[name] is scores[name]
    after = done.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in ready.model.state_dict().items())


def test_ties_are_of_equal_groups_at_one_place() -> None:
    """Not of stages that differ in width, and not of what stands outside of blocks."""
    swin = traced(CASES["timm/swin_tiny/fused"]).graph
    found = ties(g for g in swin.groups if g.kind in ("mlp", "residual"))
    assert all(len({(swin[n].size, swin[n].kind) for n in names}) == 1 for names in found)
    assert not any(swin[n].kind == "residual" for names in found for n in names)
    tiny = traced(CASES[TINY]).graph
    assert ("blocks.0.mlp:mlp", "blocks.1.mlp:mlp") in ties(tiny.groups)
