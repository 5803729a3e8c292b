"""Curves of single parts and the plans from them, on a prober whose quality is a formula."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from toys import toy_graph
from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.search import Goal, Limits, Prober, Quality, Record, SearchError, curves_of, space_of
from vitprune.search.adder import Adder, divergence_at
from vitprune.search.curve_plans import curves_for, plan_from, sensitivity_search, way_of
from vitprune.search.parts import Part, parts_of
from vitprune.search.quality import Drop
from vitprune.search.sensitivity import Curve, Level
from vitprune.trace.graph import Graph, Group
from vitprune.trace.polynomial import Polynomial

IMAGES = 4000
WEIGHTS = {"residual": 0.9, "attn:heads": 0.3, "attn:qk": 0.02, "attn:v": 0.05, "fc1:mlp": 0.2, "attn:block": 0.1}


def formula(graph: Graph, sizes: Mapping[str, int]) -> float:
    """Divergence: per group a weight times the square of the fraction removed, so a straight line in its root."""
    total = 0.0
    for group in graph.groups:
        weight = WEIGHTS[group.name.split(".")[-1]] * (1 + 3 * (group.block or 0))
        total += weight * (1 - sizes[group.name] / group.size) ** 2
    return total


class Formula(Prober):
    """Its small models are plans; one point of top-1 is lost per 0.05 of the divergence."""

    made = 0

    def small(self, plan: Plan) -> Any:
        return plan

    def judged(self, plan: Plan) -> Quality:
        self.made += 1
        divergence = formula(self.graph, plan.sizes())
        right = np.arange(IMAGES) >= round(IMAGES * min(divergence / 5, 1.0))
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        return Quality(float(right.mean()), divergence, bits, IMAGES)


class Dense:
    """A judge that asks the formula."""

    def __init__(self) -> None:
        bits = base64.b64encode(np.packbits(np.ones(IMAGES, dtype=bool)).tobytes()).decode()
        self.dense = Quality(1.0, 0.0, bits, IMAGES)
        self.prober: Any = None

    def __call__(self, plan: Any, stop: object = None) -> Quality:
        return self.prober.judged(plan)


def prober(graph: Graph | None = None, kinds: tuple[str, ...] = ("mlp", "qk", "v"), **further: Any) -> Formula:
    graph = graph or toy_graph()
    scores = {g.name: np.random.default_rng(0).random((g.lanes, g.size)) for g in graph.groups}
    judge: Any = Dense()
    space = space_of(graph, [g.name for g in graph.groups if g.kind in kinds])
    made = Formula(nn.Identity(), graph, scores, space, judge, None, (), kinds=kinds, **further)
    judge.prober = made
    return made


def with_branches() -> Graph:
    """The toy, the attention of both blocks being removable."""
    graph = toy_graph()
    blocks = tuple(
        Group(f"blocks.{b}.attn:block", "block", 1, 1, None, (), "", b, modules=(f"blocks.{b}.attn",)) for b in (0, 1)
    )

    def within(polynomial: Polynomial) -> Polynomial:
        inside = lambda names: [f"{n.split(':')[0]}:block" for n in names if n.endswith(":heads")]  # noqa: E731
        return Polynomial.of([((*names, *inside(names)), c) for names, c in polynomial.terms])

    return Graph((*graph.groups, *blocks), (), (), within(graph.macs), within(graph.params), graph.cosize, (), 1, "toy")


def test_parts_hold_every_group_that_may_shrink_once() -> None:
    kinds = ("residual", "heads", "qk", "v", "mlp")
    by_kind = parts_of(prober(kinds=kinds))
    assert [p.name for p in by_kind] == [
        *("residual", "heads 0", "qk+v 0", "mlp 0", "heads 1", "qk+v 1", "mlp 1"),
    ]
    names = [name for p in by_kind for name in p.groups]
    assert sorted(names) == sorted(g.name for g in toy_graph().groups)
    mlp = by_kind[3]
    assert [c["blocks.0.fc1:mlp"] for c in mlp.choices] == [64, 56, 48, 40, 32, 24, 16, 8]
    np.testing.assert_allclose(mlp.removed, [i / 8 for i in range(8)])
    assert [mlp.nearest(f) for f in (0.01, 0.3125, 0.5, 1.0)] == [1, 2, 4, 7]
    assert parts_of(prober(kinds=("mlp", "v", "qk")), "module")[0].name == "attention 0"
    assert [p.name for p in parts_of(prober(with_branches(), ("block", "mlp")))] == [
        *("mlp 0", "mlp 1", "attn branch 0", "attn branch 1"),
    ]


def test_protected_groups_and_minimum_sizes_hold() -> None:
    parts = parts_of(prober(protect=("blocks.0.*",), minimum={"mlp": 40}))
    assert [p.name for p in parts] == ["qk+v 1", "mlp 1"]
    assert min(c["blocks.1.fc1:mlp"] for c in parts[1].choices) == 40
    with pytest.raises(SearchError, match="nothing of the model may shrink"):
        parts_of(prober(protect=("*",)))


def test_curves_are_the_formula_at_what_is_really_removed() -> None:
    one = prober(kinds=("residual", "qk", "v", "mlp"))
    curves = curves_of(one)
    assert curves.missing == 0
    assert [c.part.name for c in curves.curves] == ["residual", "qk+v 0", "mlp 0", "qk+v 1", "mlp 1"]
    for curve in curves.curves:
        # 16 dims per head are cut to 8: one level for all three fractions
        assert [x.removed for x in curve.levels] == ([0.5] if "v" in curve.part.row else [0.25, 0.5, 0.75])
        for level in curve.levels:
            full = {**one.graph.sizes(), **level.sizes}
            assert level.divergence == formula(one.graph, full)
            assert level.saved["macs"] == 1 - one.graph.cost(full)[0] / one.graph.cost()[0]
            assert level.lost.points == pytest.approx(100 * round(IMAGES * level.divergence / 5) / IMAGES)
    assert one.made == 3 + 2 * (3 + 1)
    assert len(curves.rows()) == one.made
    with pytest.raises(SearchError, match=r"must be in \(0, 1\], but got 0, 1.5"):
        curves_of(one, (0.5, 0, 1.5))


def test_resuming_makes_no_new_probes(tmp_path: Path) -> None:
    first = prober(record=Record(tmp_path / "probes.jsonl"))
    goal = Goal(max_drop=2.0)
    best = sensitivity_search(first, goal)
    again = prober(record=Record(tmp_path / "probes.jsonl"))
    assert sensitivity_search(again, goal) == best
    assert again.made == 0 and len(again.probes) == first.made


def test_limits_leave_the_largest_fractions_of_all_parts_and_some_probes() -> None:
    one = prober(limits=Limits(trials=8))
    curves = curves_of(one)
    assert one.made == 6 and curves.missing == 2  # three quarters of eight
    assert [[x.removed for x in c.levels] for c in curves.curves] == [[0.5], [0.5, 0.75]] * 2
    assert one.costs(plan_from(curves, one, "macs", 0.6))["macs"] <= 0.6
    none = curves_of(prober(limits=Limits(trials=1)))
    assert [(r.part, r.block, r.divergence) for r in none.rows()][:2] == [("qk+v", 0, None), ("mlp", 0, None)]
    with pytest.raises(SearchError, match="no part was measured"):
        sensitivity_search(prober(limits=Limits(trials=1)), Goal(budget=0.5))


def test_curves_rise_and_pass_through_what_was_measured() -> None:
    part = Part("mlp 0", "mlp", 0, tuple({"a": n} for n in range(10, 0, -1)), tuple(n / 10 for n in range(10)))

    def curve(*values: tuple[float, float]) -> Curve:
        return Curve(part, tuple(Level(r, r, {}, {}, Drop(0, 0), d) for r, d in values))

    noisy = curve((0.2, 0.01), (0.5, 0.008), (0.8, 0.4))
    at = np.linspace(0, 0.8, 81)
    found = divergence_at(noisy, at.tolist())
    assert (np.diff(found) >= -1e-12).all() and found[0] == 0
    np.testing.assert_allclose(found[[20, 50, 80]], [0.01, 0.01, 0.4])
    np.testing.assert_allclose(divergence_at(curve((0.5, 0.04)), [0.25]), [0.01])  # of second order


class Brute:
    """All combinations of all sizes: their costs, shares of the dense one, and their divergences."""

    def __init__(self, one: Prober, cost: str) -> None:
        polynomial, dense = (one.graph.macs, one.graph.cost()[0]) if cost == "macs" else (one.graph.params, 0)
        self.costs, self.lost = [], []
        for chosen in product(*(p.choices for p in parts_of(one))):
            sizes = {**one.graph.sizes(), **{n: s for c in chosen for n, s in c.items()}}
            gone = [n.split(":")[0] for n, size in sizes.items() if n.endswith(":block") and size == 0]
            for name in sizes if gone else ():  # what goes with a branch stays whole, and costs nothing
                if name.split(":")[0] in gone and not name.endswith(":block"):
                    sizes[name] = one.graph[name].size
            self.costs.append(float(polynomial.evaluate(sizes)) / (dense or one.graph.cost()[1]))
            self.lost.append(formula(one.graph, sizes))

    def least(self, budget: float) -> float:
        """The least divergence within the budget."""
        return float(np.min(np.array(self.lost)[np.array(self.costs) <= budget]))


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("kinds", [("mlp", "qk", "v"), ("mlp", "qk", "v", "heads"), ("residual", "qk", "v", "mlp")])
def test_plans_are_the_best_of_all_combinations(kinds: tuple[str, ...], cost: str) -> None:
    one = prober(kinds=kinds)
    curves = curves_of(one, (0.25, 0.5, 1.0))  # to the smallest sizes
    way, before, every = way_of(curves, one, cost), np.inf, Brute(one, cost)
    smallest = one.costs(way.at(1e-6))[cost]
    for budget in np.linspace(smallest + 1e-3, 0.98, 12):
        plan = plan_from(curves, one, cost, float(budget))
        assert one.costs(plan)[cost] <= budget
        got = formula(one.graph, plan.sizes())
        best, tighter = every.least(budget), every.least(budget - 5e-4)
        assert best - 1e-9 <= got <= tighter + 1e-9  # costs are rounded up by at most 1/8,000 per item
        assert got <= before + 1e-12
        before = got


def test_branches_go_with_what_is_in_them() -> None:
    one = prober(with_branches(), ("block", "qk", "v", "heads", "mlp"))
    curves = curves_of(one, (0.5, 1.0))
    adder, every, gone = Adder(curves, one, "macs"), Brute(one, "macs"), 0
    for budget in (0.3, 0.45, 0.6, 0.75, 0.9):
        plan = plan_from(curves, one, "macs", budget)
        sizes = plan.sizes()
        assert one.costs(plan)["macs"] <= budget
        assert every.least(budget) - 1e-9 <= formula(one.graph, sizes) <= every.least(budget - 5e-4) + 1e-9
        assert adder.divergence(sizes) == pytest.approx(formula(one.graph, sizes))
        for b in (0, 1):
            if sizes[f"blocks.{b}.attn:block"] == 0:
                gone += 1
                assert sizes[f"blocks.{b}.attn:heads"] == 4 and sizes[f"blocks.{b}.attn:qk"] == 16
    assert gone


def test_the_search_keeps_its_goal() -> None:
    one = prober()
    at_budget = sensitivity_search(one, Goal(budget=0.7))
    assert at_budget.costs["macs"] <= 0.7 and at_budget.origin == "sensitivity"
    curves, probes = curves_of(one), one.made
    for points in (0.3, 2.0, 5.0):
        best = sensitivity_search(one, Goal(max_drop=points), curves)
        assert best.lost.points <= points
        dearer = [p for p in one.probes if p.lost.points <= points]
        assert best.costs["macs"] == min(p.costs["macs"] for p in dearer)
    assert one.made - probes <= 3 * 9
    with pytest.raises(TargetError, match="smallest is 0.*measure larger fractions"):
        plan_from(curves, one, "macs", 0.1)
    fresh = prober()
    with pytest.raises(TargetError, match="macs=0.01 cannot be reached: with all parts at their smallest it is 0"):
        sensitivity_search(fresh, Goal(budget=0.01))
    assert fresh.made == 0
    with pytest.raises(SearchError, match="needs a table of times"):
        plan_from(curves, one, "latency", 0.5)


def test_parts_that_a_plan_makes_as_small_as_was_measured_are_measured_further() -> None:
    def removed(goal: Goal, **further: Any) -> list[list[float]]:
        one = prober(kinds=("mlp",), **further)
        return [[level.removed for level in c.levels] for c in curves_for(one, goal, (0.5,)).curves]

    one = prober(kinds=("mlp",))
    assert removed(Goal(budget=0.95)) == [[0.5], [0.5]]
    # the second block's loses four times as much: the first one goes further alone, to the sizes nearest to 0.9 and 1
    only = one.costs(one.by_sizes({"blocks.0.fc1:mlp": 32}))["macs"]
    assert removed(Goal(budget=only - 0.02)) == [[0.5, 0.875], [0.5]]
    both = {f"blocks.{b}.fc1:mlp": 32 for b in (0, 1)}
    assert removed(Goal(budget=one.costs(one.by_sizes(both))["macs"] - 0.02)) == [[0.5, 0.875], [0.5, 0.875]]
    assert sensitivity_search(prober(kinds=("mlp",)), Goal(budget=0.75)).costs["macs"] <= 0.75
    lost = 100 * formula(one.graph, one.graph.sizes() | both) / 5
    assert removed(Goal(max_drop=lost + 0.1)) == [[0.5, 0.875], [0.5, 0.875]]
    assert removed(Goal(max_drop=lost + 0.1), limits=Limits(trials=3)) == [[0.5], [0.5]]  # none is left to look further


def test_latency_is_added_up_from_predictions() -> None:
    graph = toy_graph()
    share = lambda sizes: 0.1 + 0.9 * graph.cost(sizes)[0] / graph.cost()[0]  # noqa: E731
    one = prober(graph, latency=share)
    curves = curves_of(one)
    for budget in (0.75, 0.85):
        by_time, by_macs = (
            plan_from(curves, one, "latency", budget),
            plan_from(curves, one, "macs", (budget - 0.1) / 0.9),
        )
        assert one.costs(by_time)["latency"] <= budget
        assert formula(graph, by_time.sizes()) == pytest.approx(formula(graph, by_macs.sizes()))
