"""Searches of ratios: spaces, goals, records, and what is found on formulas whose optimum is known."""

from __future__ import annotations

import base64
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import vitprune
from formula import formula_prober, quality
from vitprune.errors import StoreError, TargetError
from vitprune.search import (
    Drop,
    Goal,
    Judge,
    Limits,
    Probe,
    Quality,
    Record,
    SearchError,
    baselines,
    better,
    check_resolution,
    drop,
    front,
    ratio_search,
    space_of,
)
from vitprune.search.ways import along, analytic, at_cost, bisect, cascade, uniform
from vitprune.trace.graph import Graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = vitprune.load_model("timm:vit_tiny_patch16_224?depth=3&img_size=32&patch_size=8")
    return vitprune.trace(model)


def names(graph: Graph, *kinds: str) -> list[str]:
    return [g.name for g in graph.groups if g.kind in kinds]


# ---- spaces ----


def test_axes_hold_every_group_once(graph):
    for per in ("module", "kind", "block"):
        chosen = names(graph, "mlp", "qk", "v", "heads", "residual")
        space = space_of(graph, chosen, per)
        held = [n for axis in space.axes for n in axis.groups]
        assert sorted(held) == sorted(chosen)
        assert len(set(space.names)) == len(space.names)


def test_axes_per_module_and_block(graph):
    assert space_of(graph, names(graph, "mlp", "qk", "v")).names == ("attention", "mlp")
    assert set(space_of(graph, names(graph, "residual", "heads", "mlp")).names) == {"residual", "heads", "mlp"}
    by_block = space_of(graph, names(graph, "mlp", "qk", "v", "residual"), "block").names
    assert by_block == ("residual", *(f"{m} {b}" for b in range(3) for m in ("attention", "mlp")))


def test_groups_that_keep_equal_sizes_share_an_axis(graph):
    assert graph.cosize  # timm's fused qkv ties q/k to v
    assert space_of(graph, names(graph, "mlp", "qk", "v"), "kind").names == ("qk+v", "mlp")


def test_shares_are_kept_within_what_the_rounding_permits(graph):
    space = space_of(graph, names(graph, "mlp", "qk", "v"), round_to=16)
    given = space.within({"attention": 0.0, "mlp": 3.0})
    assert given["attention"] == pytest.approx(16 / 64, abs=1e-5) and given["mlp"] == 1.0
    prober = formula_prober(graph, lambda shares: 0.0, round_to=16)
    assert prober.plan({"attention": 0.0, "mlp": 0.0}).pruned()  # no error at the least share


@pytest.mark.parametrize("per", ["module", "kind", "block"])
def test_a_plan_has_the_shares_it_was_made_for(graph, per):
    prober = formula_prober(graph, lambda shares: 0.0, per=per)
    rng = np.random.default_rng(1)
    for _ in range(5):
        shares = {name: float(rng.uniform(0.3, 1)) for name in prober.space.names}
        got = prober.space.of(graph, prober.plan(shares).sizes())
        assert got == pytest.approx(shares, abs=1 / 64)


def test_a_point_along_its_own_direction_is_found_again(graph):
    space = space_of(graph, names(graph, "mlp", "qk", "v"))
    shares = {"attention": 0.7, "mlp": 0.4}
    assert space.along(space.direction(shares), float(np.exp(-1))) == pytest.approx(shares)


def test_spaces_refuse_what_they_cannot_be(graph):
    with pytest.raises(SearchError, match="per module, kind, block, but got 'layer'"):
        space_of(graph, names(graph, "mlp"), "layer")  # type: ignore[arg-type]
    with pytest.raises(SearchError, match="nothing of the model may shrink"):
        space_of(graph, [])


# ---- quality ----


def test_a_drop_is_paired():
    def of(bits: list[int]) -> Quality:
        packed = base64.b64encode(np.packbits(np.array(bits, dtype=bool)).tobytes()).decode()
        return Quality(float(np.mean(bits)), 0.0, packed, len(bits))

    one, two = of([1, 1, 1, 1, 0, 0, 1, 1, 1, 0]), of([1, 0, 1, 0, 1, 0, 1, 1, 0, 0])
    got = drop(one, two)
    differences = np.array([0, 1, 0, 1, -1, 0, 0, 0, 1, 0])
    assert got.points == pytest.approx(100 * differences.mean())
    assert got.error == pytest.approx(100 * differences.std() / np.sqrt(10))
    assert drop(one, one).points == 0 and drop(one, one).error == pytest.approx(100 * np.sqrt(1 / 10 / 10))


def test_what_is_better():
    near, far, worse = quality(1.0), quality(1.0), quality(2.0)
    assert better(near, worse) and not better(worse, near)
    closer = Quality(near.top1, near.divergence / 2, near.right, near.images)
    assert better(closer, far) and not better(far, closer)


def test_a_judge_agrees_with_a_plain_count():
    torch.manual_seed(0)
    dense, other = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    batches = [(torch.randn(n, 3, 2, 2), torch.randint(0, 5, (n,))) for n in (7, 4)]
    judge = Judge(dense, batches)
    got = judge(other)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    p, q = dense(images).detach().softmax(-1).double(), other(images).detach().softmax(-1).double()
    assert got.top1 == pytest.approx(float((q.argmax(-1) == labels).double().mean()))
    assert got.hits.tolist() == (q.argmax(-1) == labels).tolist()
    assert got.divergence == pytest.approx(float((p * (p.log() - q.log())).sum(-1).mean()), rel=1e-4)
    assert judge.dense.divergence == pytest.approx(0, abs=1e-7) and got.images == 11


# ---- goals ----


def test_too_few_validation_images_are_named():
    check_resolution(1.0, 381, 10)
    with pytest.raises(SearchError, match=r"380 validation images .* ± 1 points at best; at least 381 .* \(39 per cl"):
        check_resolution(1.0, 380, 10)
    check_resolution(0.0, 1, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either a drop that is permitted"),
        ({"max_drop": 1.0, "budget": 0.5}, "either a drop that is permitted"),
        ({"max_drop": -1.0}, r"points of accuracy in \[0, 100\), but got -1"),
        ({"max_drop": float("nan")}, "but got nan"),
        ({"budget": 0.0}, r"in \(0, 1\], but got 0"),
        ({"budget": 0.5, "cost": "flops"}, "must be one of macs, params, latency, but got 'flops'"),
    ],
)
def test_goals_that_make_no_sense(given, message):
    with pytest.raises(SearchError, match=message):
        Goal(**given)


def test_a_confident_goal_counts_the_interval():
    probe = Probe(1, "x", "", {}, {}, {"macs": 0.5}, quality(0.9), Drop(0.9, 0.1), 1.0)
    assert Goal(max_drop=1.0).holds(probe) and not Goal(max_drop=1.0, confident=True).holds(probe)
    assert Goal(max_drop=1.1, confident=True).holds(probe)


# ---- records ----


def test_a_record_survives_and_drops_a_line_cut_short(graph, tmp_path):
    path = tmp_path / "probes.jsonl"
    first = formula_prober(graph, lambda s: 2 * (1 - s["mlp"]), record=Record(path))
    for share in (0.9, 0.8, 0.7):
        first.probe(first.plan({"mlp": share}), "test")
    path.write_bytes(path.read_bytes()[:-20])
    again = formula_prober(graph, lambda s: 2 * (1 - s["mlp"]), record=Record(path))
    assert [p.to_json() for p in again.probes] == [p.to_json() for p in first.probes[:2]]
    again.probe(again.plan({"mlp": 0.9}), "test")
    assert again.judge.calls == 0
    again.probe(again.plan({"mlp": 0.7}), "test")
    assert again.judge.calls == 1
    assert len(Record(path).probes) == 3


def test_a_damaged_record_is_refused(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text('{"number": 1}\n')
    with pytest.raises(StoreError, match="line 1 is no probe"):
        Record(path)


def test_limits_are_those_of_one_purpose(graph):
    prober = formula_prober(graph, lambda s: 0.0, limits=Limits(trials=3))
    goal = Goal(max_drop=1.0)
    prober.purpose = "one"
    ratio_search(prober, goal)
    assert len(prober.probes) == 3
    prober.purpose = "two"
    ratio_search(prober, goal)
    assert 3 < len(prober.probes) <= 6
    assert baselines(prober, goal)["uniform"] is not None  # not limited


# ---- ways ----


@pytest.mark.parametrize(
    "make", [uniform, cascade, lambda p: analytic(p, "macs")], ids=["uniform", "cascade", "analytic"]
)
def test_ways_grow_and_reach_their_costs(graph, make):
    prober = formula_prober(graph, lambda s: 0.0)
    way = make(prober)
    costs = [prober.costs(way.at(t))["macs"] for t in np.linspace(0.1, 1, 19)]
    assert all(b >= a for a, b in itertools.pairwise(costs)) and costs[-1] == 1
    for cost in (0.8, 0.6, 0.45):
        plan = at_cost(prober, way, "macs", cost)
        assert cost - 0.02 < prober.costs(plan)["macs"] <= cost + 1e-9
    with pytest.raises(TargetError, match=r"macs=0.01 cannot be reached|cannot be reached this way"):
        at_cost(prober, way, "macs", 0.01)


def test_a_cascade_keeps_less_in_every_block(graph):
    prober = formula_prober(graph, lambda s: 0.0)
    sizes = cascade(prober).at(0.5**3).sizes()
    shares = [sizes[n] / graph[n].size for n in names(graph, "mlp")]
    assert shares == pytest.approx([0.5, 0.25, 0.125], abs=0.01)


def test_a_bisection_ends_at_the_edge(graph):
    prober = formula_prober(graph, lambda s: 4 * (1 - s["mlp"]))
    way, goal = along(prober, {"attention": 0.0, "mlp": 1.0}, "x"), Goal(max_drop=1.0)
    found = bisect(prober, way, "macs", goal.holds, "x", 0.002)
    assert found is not None and found.lost.points <= 1.0
    assert found.shares["mlp"] == pytest.approx(0.75, abs=0.01)
    assert bisect(prober, way, "macs", lambda p: False, "x", 0.1) is None


# ---- searches ----


def lost(shares):
    """Attention is dear, MLPs are cheap."""
    return 12 * (1 - shares["attention"]) ** 2 + 2 * (1 - shares["mlp"]) ** 2


def every(prober, steps=40):
    """All points of a fine grid: (cost, points lost)."""
    grid = np.linspace(0.1, 1, steps)
    for shares in itertools.product(*[grid] * len(prober.space.names)):
        plan = prober.plan(dict(zip(prober.space.names, shares, strict=True)))
        yield prober.costs(plan)["macs"], prober.judge.lost(plan.sizes())


def test_the_smallest_model_within_a_drop(graph):
    prober = formula_prober(graph, lost)
    found = ratio_search(prober, Goal(max_drop=1.0))
    best = min(cost for cost, points in every(prober) if points <= 1.0)
    fixed = baselines(prober, Goal(max_drop=1.0))
    assert found.lost.points <= 1.0
    assert found.costs["macs"] <= best + 0.02, (found.costs, best)
    assert found.costs["macs"] < fixed["uniform"].costs["macs"] - 0.05
    assert fixed["uniform"].lost.points <= 1.0 and fixed["cascade"].lost.points <= 1.0
    assert found in front(prober.probes, "macs")
    assert len(prober.record.of("")) < 60


def test_the_best_model_at_a_budget(graph):
    prober = formula_prober(graph, lost)
    found = ratio_search(prober, Goal(budget=0.6))
    best = min(points for cost, points in every(prober) if cost <= 0.6)
    assert found.costs["macs"] <= 0.6
    assert found.lost.points <= best + 0.1, (found.lost, best)


def test_many_axes(graph):
    weights = {"attention 0": 9, "attention 1": 1, "attention 2": 4, "mlp 0": 1, "mlp 1": 0.2, "mlp 2": 5}
    prober = formula_prober(graph, lambda s: sum(w * (1 - s[n]) ** 2 for n, w in weights.items()), per="block")
    goal = Goal(max_drop=1.0)
    found, fixed = ratio_search(prober, goal), baselines(prober, goal)
    assert found.lost.points <= 1.0 and found.costs["macs"] < fixed["uniform"].costs["macs"] - 0.03


def test_a_search_repeats_itself_from_its_record(graph, tmp_path):
    path = tmp_path / "probes.jsonl"
    first = formula_prober(graph, lost, record=Record(path), limits=Limits(trials=5))
    ratio_search(first, Goal(max_drop=1.0))
    assert len(first.probes) == 5
    second = formula_prober(graph, lost, record=Record(path))
    found = ratio_search(second, Goal(max_drop=1.0))
    whole = formula_prober(graph, lost)
    assert ratio_search(whole, Goal(max_drop=1.0)).sizes == found.sizes
    assert [p.sizes for p in second.probes] == [p.sizes for p in whole.probes]
    assert second.judge.calls == len(whole.probes) - 5


def test_a_drop_that_cannot_be_held(graph):
    prober = formula_prober(graph, lambda s: 50 + 10 * (1 - s["mlp"]))
    with pytest.raises(SearchError, match=r"at most 1 points was not found: of \d+ probes the least was 50"):
        ratio_search(prober, Goal(max_drop=1.0))


def test_without_probes_nothing_is_found(graph):
    prober = formula_prober(graph, lost, limits=Limits(minutes=0.0))
    with pytest.raises(SearchError, match="no probe was made; permit more"):
        ratio_search(prober, Goal(max_drop=1.0))
