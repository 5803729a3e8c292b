"""Schedules of several steps: what is handed on, and what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vitprune
from matrix import half_plan, output, relative
from vitprune.allocate import SCOPES, Target, allocate
from vitprune.allocate.ranking import top_units
from vitprune.compose import compose, same_groups
from vitprune.errors import TargetError
from vitprune.pipeline.carry import carry_, dense_scores
from vitprune.pipeline.schedule import Schedule, part_way
from vitprune.plan import Plan
from vitprune.score import score
from vitprune.shrink import shrink
from vitprune.shrink.keep import keep_from
from vitprune.trace import trace
from zoo import CASES

MODELS = ["timm/vit_tiny/fused", "hf/vit/eager", "handwritten/picture"]
EVERYTHING = ("mlp", "qk", "v", "heads", "residual", "block")


def kinds_of(graph):
    return [k for k in EVERYTHING if any(g.kind == k for g in graph.groups)]


def batches(case, count=2):
    (like,) = case.example(2)
    return [torch.randn(8, *like.shape[1:], generator=torch.Generator().manual_seed(s)) for s in range(count)]


def nested(inner: Plan, outer: Plan) -> bool:
    """Whether `inner` keeps no unit that `outer` does not."""
    return all(
        set(mine) <= set(theirs)
        for name, group in inner.groups.items()
        for mine, theirs in zip(group.kept, outer.groups[name].kept, strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_carried_weights_are_those_of_pruning_the_pruned_model(name):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    first = half_plan(graph, ["mlp", "heads", "qk", "v"])
    small = shrink(model, graph, first, example=case.example(2))
    with torch.no_grad():
        for i, parameter in enumerate(small.parameters()):  # as a refit would
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    now = trace(small, case.example(2))
    second = half_plan(now, ["mlp", "residual", "v", "qk"], seed=1)
    whole = compose(first, second, graph, same_groups(now, graph))
    new = shrink(model, graph, whole, example=case.example(2))
    carry_(new, small, keep_from(graph, whole), keep_from(graph, first))
    straight = shrink(small, now, second, example=case.example(2))
    assert relative(output(case, new, 5), output(case, straight, 5)) < 1e-5
    ours, theirs = new.state_dict(), straight.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", MODELS)
def test_scores_find_their_units_in_the_dense_model(name):
    """The scores of the pruned model choose, as units of the dense one, what they choose in the pruned model itself."""
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    first = half_plan(graph, ["mlp", "heads", "v"])
    small = shrink(model, graph, first, example=case.example(2))
    now = trace(small, case.example(2))
    scores = score(now, small, "random", seed=3)
    placed = dense_scores(scores, first, graph, same_groups(now, graph))
    for group in graph.groups:
        if group.name in placed:
            gone = np.isneginf(placed[group.name])
            assert (~gone).sum(1).tolist() == [first.groups[group.name].kept_size] * group.lanes
    second = allocate(now, scores, "macs=0.85", scope="local", round_to=1)
    whole = compose(first, second, graph, same_groups(now, graph))
    assert len(set(placed) & set(whole.pruned())) > 3
    for group in graph.groups:
        lanes = range(group.lanes) if group.lane_group is None else whole.groups[group.lane_group].kept[0]
        if group.name in placed:
            chosen = top_units(placed[group.name], whole.sizes()[group.name])
            assert [chosen[lane] for lane in lanes] == [whole.groups[group.name].kept[lane] for lane in lanes]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_later_plan_lies_within_the_earlier(scope):
    case = CASES["timm/vit_tiny/fused"]
    graph = trace(case.model(), case.example(2))
    rng = np.random.default_rng(0)
    plan = None
    for ratio in (0.8, 0.6, 0.45, 0.3):
        scores = {g.name: rng.random((g.lanes, g.size)) for g in graph.groups}  # other ones in each step
        further = allocate(graph, scores, Target("macs", ratio), scope=scope, kinds=EVERYTHING, within=plan)
        assert plan is None or nested(further, plan)
        assert further.obtained["macs"]["ratio"] <= ratio
        rest = any("no rounding step fits into what is left" in note for note in further.settings["notes"])
        assert further.obtained["macs"]["ratio"] > 0.85 * ratio or (scope == "per-cost" and rest)  # whole branches go
        plan = further
    with pytest.raises(TargetError, match="cannot be reached"):
        allocate(graph, scores, "macs=0.001", scope=scope, kinds=EVERYTHING, within=plan)
    unscored = {n: v for n, v in scores.items() if not n.endswith("mlp")}
    last = allocate(graph, unscored, "macs=0.25", scope=scope, kinds=EVERYTHING, within=plan)
    assert all(last.groups[n] == plan.groups[n] for n in scores if n.endswith("mlp"))
    assert nested(last, plan)


@pytest.mark.parametrize("name", ["timm/vit_tiny/fused", "handwritten/picture"])
def test_three_steps_reach_the_target(name):
    case = CASES[name]
    model = case.model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model, case.example(2))
    small, plan = vitprune.prune(
        model, case.example(2), "params=0.45", method="energy", kinds=kinds_of(graph), scope="isomorphic", round_to=2,
        batches=batches(case), steps=3,
    )  # fmt: skip
    plan.check(graph)
    got = plan.obtained["params"]
    assert 0.99 * 0.45 < got["ratio"] <= 0.45 or any("no rounding step" in n for n in plan.settings["notes"])
    assert sum(p.numel() for p in small.parameters()) == got["value"]
    assert (plan.settings["steps"], plan.method) == (3, "energy")
    assert not any("has no such group" in note for note in plan.settings["notes"]), plan.settings["notes"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    built = shrink(model, graph, plan, example=case.example(2))  # as loading does
    built.load_state_dict(small.state_dict(), strict=True)
    assert relative(output(case, built, 2), output(case, small, 2)) < 1e-6


def test_steps_are_refitted_on_the_way():
    case = CASES["timm/vit_tiny/fused"]
    model, data = case.model(), batches(case, 4)
    fresh = batches(case, 6)[5]
    gaps = {}
    for refits in (False, True):
        small, plan = vitprune.prune(model, case.example(2), method="energy", batches=data, refits=refits, steps=2)
        with torch.no_grad():
            gaps[refits] = float((case.out(small(fresh)) - case.out(model(fresh))).norm())
        assert plan.obtained["macs"]["ratio"] <= 0.5
    assert gaps[True] < 0.8 * gaps[False]


def test_shares_are_reached_step_by_step():
    case = CASES["timm/vit_tiny/fused"]
    labelled = [(x, torch.arange(8) % 10) for x in batches(case)]
    ratios, by_layer = {"heads": 0.4, "block": 0.75}, {"blocks.0.mlp:mlp": 0.25}
    small, plan = vitprune.prune(
        case.model(), case.example(2), None, ratios=ratios, layer_ratios=by_layer, protect=["*attn:block"],
        method="fisher", batches=labelled, refits=False, steps=3,
    )  # fmt: skip
    sizes = plan.sizes()
    heads = [g for g in plan.groups.values() if g.kind == "heads"]
    assert sum(g.kept_size for g in heads) == int(0.4 * sum(g.size for g in heads))
    assert sum(sizes[n] for n in sizes if n.endswith("mlp:block")) == 1  # of two
    assert sizes["blocks.0.mlp:mlp"] == 0.25 * plan.groups["blocks.0.mlp:mlp"].size or not sizes["blocks.0.mlp:block"]
    assert (plan.settings["ratios"], plan.settings["layer_ratios"]) == (ratios, [["blocks.0.mlp:mlp", 0.25]])
    assert sum(p.numel() for p in small.parameters()) == plan.obtained["params"]["value"]


def test_the_way_to_a_target_has_equal_factors():
    case = CASES["timm/vit_tiny/fused"]
    graph = trace(case.model(), case.example(2))
    dense = graph.cost()[0]
    relative_, absolute = Target("macs", 0.3), Target("macs", 0.3 * dense, absolute=True)
    for share in (0.25, 0.5, 0.75):
        assert part_way(relative_, graph, share).value == pytest.approx(0.3**share)
        assert part_way(absolute, graph, share).value == pytest.approx(dense * 0.3**share)
    assert part_way(absolute, graph, 1) == absolute


def test_one_step_is_what_it_was():
    case = CASES["hf/vit/eager"]
    model = case.model()
    graph = trace(model, case.example(2))
    plan = allocate(graph, score(graph, model), "macs=0.6")
    _, got = vitprune.prune(model, case.example(2), "macs=0.6")
    assert got.groups == plan.groups


def test_what_cannot_be_reached_fails_before_the_first_step(monkeypatch):
    case = CASES["timm/vit_tiny/fused"]
    monkeypatch.setattr("vitprune.pipeline.schedule.shrink", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(TargetError, match="cannot be reached"):
        vitprune.prune(case.model(), case.example(2), "macs=0.001", steps=3)
    with pytest.raises(TargetError, match="steps must be at least 1, but got 0"):
        Schedule(steps=0)


def test_branches_chosen_without_images_are_noted():
    case = CASES["timm/vit_tiny/fused"]
    _, plan = vitprune.prune(case.model(), case.example(2), None, ratios={"block": 0.5})
    assert any("whole branches were chosen by magnitude-l2" in note for note in plan.settings["notes"])
    _, plan = vitprune.prune(
        case.model(), case.example(2), None, ratios={"block": 0.5}, method="energy", batches=batches(case)
    )
    assert not plan.settings["notes"]
