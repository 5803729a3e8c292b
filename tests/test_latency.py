"""The parts of latency targets: solver, branches, clock, table; mostly with a clock that counts."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

import vitprune
from latency_parts import HALF, CountingClock, make_tiny, planned, spaced
from vitprune.allocate.allocate import choices
from vitprune.errors import TargetError, VitpruneError
from vitprune.latency import Timing, table
from vitprune.latency.branches import find_structure
from vitprune.latency.clock import WallClock, at_batch
from vitprune.latency.knapsack import Knapsack
from vitprune.latency.solver import STEPS, Solver
from vitprune.latency.table import make_grid
from vitprune.latency.worth import kept_values


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


# the knapsack


def instance(seed, items=4):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, items)
    return [rng.integers(0, 20, n).astype(float) for n in counts], [rng.random(n) for n in counts]


@pytest.mark.parametrize("seed", range(6))
def test_knapsack_equals_brute_force_at_every_budget(seed):
    costs, values = instance(seed)
    solver = Knapsack(costs, values, unit=1.0)
    for budget in range(-1, 80, 3):
        feasible = [
            sum(v[i] for v, i in zip(values, picks, strict=True))
            for picks in itertools.product(*(range(len(c)) for c in costs))
            if sum(c[i] for c, i in zip(costs, picks, strict=True)) <= budget
        ]
        assert solver.value(budget) == pytest.approx(max(feasible, default=-np.inf))
        if feasible:
            picks = solver.choose(budget)
            assert sum(c[i] for c, i in zip(costs, picks, strict=True)) <= budget
            assert sum(v[i] for v, i in zip(values, picks, strict=True)) == pytest.approx(max(feasible))
        else:
            with pytest.raises(ValueError, match="cheapest choices cost"):
                solver.choose(budget)


@pytest.mark.parametrize("seed", [10, 11])
def test_knapsack_equals_an_integer_program(seed):
    rng = np.random.default_rng(seed)
    costs, values = [rng.integers(1, 400, 12).astype(float) for _ in range(10)], [rng.random(12) for _ in range(10)]
    budget = 1000.0
    one_each = np.kron(np.eye(10), np.ones(12))
    found = milp(
        -np.concatenate(values),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(np.concatenate(costs)[None], 0, budget)],
        integrality=np.ones(120),
        bounds=Bounds(0, 1),
    )
    assert Knapsack(costs, values, unit=1.0).value(budget) == pytest.approx(-found.fun, rel=1e-4)


def test_costs_count_in_full_whatever_the_unit():
    costs = [np.array([1.0, 2.5]), np.array([0.3, 0.9])]
    solver = Knapsack(costs, [np.array([0.0, 1.0]), np.array([0.0, 1.0])], unit=0.4)
    for budget in np.linspace(1.3, 4, 20):
        assert sum(c[i] for c, i in zip(costs, solver.choose(budget), strict=True)) <= budget + 1e-9


# branches


def test_branches_of_a_vit_are_its_attentions_and_mlps_with_their_norms(tiny):
    _, structure, _, _ = spaced(tiny)
    assert structure.shared is None and structure.notes == ()
    found = {b.modules for b in structure.branches}
    both = [(f"blocks.{i}.norm{n}", f"blocks.{i}.{m}") for i in range(4) for n, m in ((1, "attn"), (2, "mlp"))]
    assert found == {(), *both}
    assert structure.branches[0].modules == ()
    assert [len(b.axes) for b in structure.branches] == [0] + [1] * 8  # q/k and v dims are tied


def test_axes_are_heads_dims_and_the_residual_width_is_shared(tiny):
    space = choices(tiny.graph, tiny.scores, HALF, kinds=("heads", "qk", "v", "mlp", "residual", "block"))
    structure = find_structure(tiny.graph, space.clusters)
    kinds = [{space.clusters[i].groups[0].kind for i in a.clusters} for a in structure.branches[1].axes]
    assert kinds == [{"qk"}, {"heads"}]
    assert structure.branches[1].block is not None
    assert space.clusters[structure.branches[1].block].groups[0].name == "blocks.0.attn:block"
    assert structure.shared is not None
    assert [space.clusters[i].groups[0].kind for i in structure.shared.clusters] == ["residual"]
    assert all(len(structure.axes(b)) == len(b.axes) + 1 for b in structure.branches)


def test_several_residual_widths_move_together():
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, window_size=7, embed_dim=16, depths=(2, 2), num_heads=(2, 2)
    ).eval()
    graph = vitprune.trace(model, torch.randn(2, 3, 56, 56))
    scores = vitprune.score(graph, model)
    space = choices(graph, scores, HALF, kinds=("residual", "mlp"), round_to=4)
    structure = find_structure(graph, space.clusters)
    assert structure.shared is not None and len(structure.shared.clusters) == 2
    assert any("keep the same share of each" in note for note in structure.notes)
    dense = structure.shared.sizes[-1]
    assert dense.tolist() == [space.clusters[i].sizes[-1] for i in structure.shared.clusters]
    shares = structure.shared.sizes / dense
    assert np.abs(shares[:, 0] - shares[:, 1]).max() <= 4 / 16
    assert (np.diff(structure.shared.sizes, axis=0) >= 0).all()


# the clock


class Slow(nn.Module):
    """Takes some of a time that only the test lets pass."""

    def __init__(self, now, before, after=0.0, inner=None):
        super().__init__()
        self.now, self.before, self.after = now, before, after
        self.inner = inner

    def forward(self, x):
        self.now[0] += self.before
        if self.inner is not None:
            x = self.inner(x)
        self.now[0] += self.after
        return x


def test_parts_are_exclusive_of_branches_inside(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vitprune.latency.clock.time", SimpleNamespace(perf_counter=lambda: now[0]))
    model = nn.Sequential(
        Slow(now, 0.001, 0.002, inner=Slow(now, 0.004)), Slow(now, 0.008), Slow(now, 0.016)
    )  # fmt: skip
    clock = WallClock((torch.zeros(1),))
    times = clock.parts([model], [(), ("0",), ("0.inner", "2")], turns=3)
    assert times.shape == (3, 1, 3)
    assert times[0, 0] == pytest.approx([8.0, 3.0, 20.0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_whole_takes_turns_in_eval_mode_and_gives_threads_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    before = torch.get_num_threads()
    times = WallClock((torch.zeros(2, 4),), threads=1, warmup=0).whole([model, model], 5)
    assert times.shape == (5, 2) and (times > 0).all()
    assert model.training and torch.get_num_threads() == before


def test_arguments_take_the_batch_asked_for():
    x, text = torch.randn(2, 3, 4), torch.arange(2)
    images, words, flag = at_batch((x, text, True), 5)
    assert images.shape == (5, 3, 4) and words.shape == (5,) and flag is True
    assert torch.equal(images[4], x[0])
    with pytest.raises(VitpruneError, match="first argument is a tensor"):
        at_batch(("image",), 2)


# the table


@pytest.mark.parametrize("kinds", [("mlp", "qk", "v"), ("mlp", "qk", "v", "residual"), ("heads", "qk")])
def test_interpolated_times_are_those_of_models_off_the_grid(tiny, kinds, monkeypatch):
    monkeypatch.setattr(table, "SHARED", 2)
    monkeypatch.setattr(table, "POINTS_SHARED", {0: 1, 1: 3})
    space, structure, measured, build = spaced(tiny, kinds=kinds)
    dense = CountingClock().parts([tiny.model], [b.modules for b in structure.branches], 1)[0, 0].sum()
    rng = np.random.default_rng(0)
    for _ in range(3):
        sizes = np.array([rng.choice(c.sizes) for c in space.clusters])
        real = CountingClock().parts([build(sizes)], [b.modules for b in structure.branches], 1)[0, 0]
        for number, branch in enumerate(structure.branches):
            at = tuple(
                int(np.flatnonzero((a.sizes == sizes[list(a.clusters)]).all(axis=1))[0]) for a in structure.axes(branch)
            )
            got = measured.times(number)[at]
            assert got == pytest.approx(real[number] / dense, rel=1e-6), branch.modules  # parameters are multilinear


def test_grids_end_at_the_smallest_and_the_dense_size(tiny):
    _, structure, _, _ = spaced(tiny, round_to=4)
    grid = make_grid(structure)
    for branch, points in zip(structure.branches, grid.points, strict=True):
        for axis, at in zip(branch.axes, points, strict=True):
            assert at[0] == 0 and at[-1] == len(axis.sizes) - 1 and len(at) <= 9


def test_a_branch_that_is_not_called_is_refused(tiny):
    class Deaf(CountingClock):
        def parts(self, models, regions, turns):
            times = super().parts(models, regions, turns)
            times[:, :, 1] = 0
            return times

    with pytest.raises(
        TargetError, match=r"blocks.0.attn cannot be measured, as it is not called as a module.*protect"
    ):
        planned(tiny, "latency=0.8x", clock=Deaf())


# the solver


def test_solver_equals_brute_force_over_all_sizes(tiny):
    protect = ["blocks.[123].*", "blocks.0.attn:heads"]
    space, structure, measured, _ = spaced(tiny, protect=protect, round_to=8)
    solver = Solver(space, measured)
    kept = kept_values(space)
    axes = [(n, b.axes[0]) for n, b in enumerate(structure.branches) if b.axes]
    assert len(axes) == 2
    fixed = sum(measured.times(n).item() for n, b in enumerate(structure.branches) if not b.axes)
    weights = []
    for n, axis in axes:
        t = measured.times(n)
        weights.append((t[-1] - t[0]) / (1 - axis.sizes[0, 0] / axis.sizes[-1, 0]))

    def best(budget):
        return max(
            sum(w * kept[a.clusters[0]][i] for w, (_, a), i in zip(weights, axes, picks, strict=True))
            for picks in itertools.product(*(range(len(a.sizes)) for _, a in axes))
            if fixed + sum(measured.times(n)[i] for (n, _), i in zip(axes, picks, strict=True)) <= budget + 1e-12
        )

    for budget in np.linspace(solver.least + 0.002, solver.most, 7):
        solution = solver.solve(budget)
        assert solution.predicted <= budget + 1e-9
        got = sum(
            w * kept[a.clusters[0]][list(space.clusters[a.clusters[0]].sizes).index(solution.sizes[a.clusters[0]])]
            for w, (_, a) in zip(weights, axes, strict=True)
        )
        assert best(budget - 2 * solver.most / STEPS) - 1e-5 <= got <= best(budget) + 1e-12  # ties count 1e-7


def test_per_cost_maximises_the_scores_that_are_kept(tiny):
    space, structure, measured, _ = spaced(tiny, scope="per-cost", protect=["blocks.[123].*"], kinds=("mlp", "block"))
    solver = Solver(space, measured)
    (number,) = (n for n, b in enumerate(structure.branches) if b.axes)
    others = [n for n, b in enumerate(structure.branches) if not b.axes and b.block is not None]
    fixed = sum(measured.times(n).item() for n, b in enumerate(structure.branches) if not b.axes and n not in others)
    (axis,) = structure.branches[number].axes
    (cluster,) = (space.clusters[c] for c in axis.clusters)
    falling = -np.sort(-tiny.scores[cluster.groups[0].name][0])

    def score_of(n):
        return float(tiny.scores[space.clusters[structure.branches[n].block].groups[0].name].sum())

    lost = [float(falling[size:].sum()) for size in cluster.sizes]
    inner = [
        (float(t), max(0.0, score_of(number) - x)) for t, x in zip(measured.times(number).ravel(), lost, strict=True)
    ]
    choices = [[*inner, (0.0, 0.0)], *([(float(measured.times(n).item()), score_of(n)), (0.0, 0.0)] for n in others)]
    whole = sum(float(tiny.scores[g.name].sum()) for c in space.clusters for g in c.groups)

    def best(budget):
        worth = [
            sum(w for _, w in pick) for pick in itertools.product(*choices)
            if fixed + sum(t for t, _ in pick) <= budget + 1e-12
        ]  # fmt: skip
        return max(worth, default=0.0) / whole

    for budget in np.linspace(solver.least + 0.01, solver.most, 6):
        sizes = solver.solve(budget).sizes
        got = 0.0
        for n in others:
            got += score_of(n) * bool(sizes[structure.branches[n].block])
        if sizes[structure.branches[number].block]:
            at = list(cluster.sizes).index(sizes[axis.clusters[0]])
            got += inner[at][1]
        assert best(budget - 3 * solver.most / STEPS) - 1e-9 <= got / whole <= best(budget) + 1e-9


def test_local_scope_spreads_evenly_and_eats_no_layer(tiny):
    space, _, measured, _ = spaced(tiny, round_to=4)
    solver = Solver(space, measured)
    for budget in (0.8, 0.6, 0.5):
        solution = solver.solve(budget)
        for kind in ("mlp", "qk"):
            shares = [
                s / c.sizes[-1] for s, c in zip(solution.sizes, space.clusters, strict=True) if c.groups[0].kind == kind
            ]
            step = max(np.diff(c.sizes).max() / c.sizes[-1] for c in space.clusters if c.groups[0].kind == kind)
            assert max(shares) - min(shares) <= step + 1e-9, (budget, kind)
        shares = [s / c.sizes[-1] for s, c in zip(solution.sizes, space.clusters, strict=True)]
        assert max(shares) - min(shares) <= 0.3  # attention goes in steps of a quarter


def test_steps_that_save_no_time_are_not_taken(tiny):
    class Stepped(CountingClock):  # an MLP's time depends on its width in multiples of 64
        def parts(self, models, regions, turns):
            times = super().parts(models, regions, turns)
            for m, model in enumerate(models):
                for r, region in enumerate(regions):
                    if region and region[-1].endswith("mlp"):
                        times[:, m, r] = -(-model.get_submodule(region[-1]).fc1.out_features // 64) * 6.0
            return times

    plan = planned(tiny, "latency=0.7x", clock=Stepped(), kinds=("mlp",), round_to=32, timing=Timing(tolerance=0.2))
    widths = [g.kept_size for g in plan.groups.values() if g.kind == "mlp"]
    assert set(widths) <= {64, 128, 192} and min(widths) < 192


def test_blocks_of_low_value_go_first(tiny):
    scores = dict(tiny.scores)
    blocks = [g for g in tiny.graph.groups if g.kind == "block"]
    for rank, group in enumerate(blocks):
        scores[group.name] = np.array([[1.0 + rank]])
    changed = SimpleNamespace(**{**vars(tiny), "scores": scores})
    plan = planned(changed, "latency=0.6x", kinds=("block",), timing=Timing(tolerance=0.1))
    for kind in ("attn", "mlp"):  # of the same cost
        stays = [plan.groups[f"blocks.{i}.{kind}:block"].kept_size for i in range(4)]
        assert stays == sorted(stays)
    assert 0 < len(plan.pruned()) < 8
