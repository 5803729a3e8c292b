"""Latency as the masks' cost: the table as a function with a gradient, targets, weights; with a clock that counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

import vitprune
from conftest import TINY
from latency_parts import CountingClock, make_tiny, spaced
from masks_parts import SETTINGS, pictures
from vitprune.allocate import Target
from vitprune.data import open_data
from vitprune.errors import TargetError
from vitprune.latency import Timed, Timing, table
from vitprune.latency.predict import Prediction
from vitprune.latency.solver import Solver
from vitprune.latency.table import Table
from vitprune.masks import MaskError, MaskResult, MaskSettings, Pressure, Search, on_model, train_masks
from vitprune.masks.cost import SoftCost
from vitprune.masks.train import projected
from vitprune.plan import Plan
from vitprune.shrink import shrink

QUICK = replace(SETTINGS, epochs=6, batch_size=8)


made = cache(make_tiny)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """Four blocks, traced once; a model of the test's own."""
    ready = made()
    return SimpleNamespace(**{**vars(ready), "model": copy.deepcopy(ready.model)})


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables."""
    monkeypatch.setattr(table, "SHARED", 2)
    monkeypatch.setattr(table, "POINTS_SHARED", {0: 1, 1: 3, 2: 2, 3: 2})
    monkeypatch.setattr(table, "POINTS", {0: 1, 1: 5, 2: 3, 3: 2})


def of_clusters(space: Any, table: Table) -> tuple[list[str], Prediction]:
    """A prediction of the sizes of the clusters' first groups, and of the others of each cluster with them."""
    names = [g.name for c in space.clusters for g in c.groups]
    return names, Prediction(space.clusters, table, names)


def spread(space: Any, sizes: np.ndarray) -> list[float]:
    """Sizes of all groups of the clusters."""
    return [float(n) for c, n in zip(space.clusters, sizes, strict=True) for _ in c.groups]


@pytest.mark.parametrize(
    "kinds", [("mlp", "qk", "v"), ("mlp", "heads", "qk", "block"), ("mlp", "heads", "qk", "v", "residual", "block")]
)
def test_the_prediction_is_the_solvers(tiny: SimpleNamespace, kinds: tuple[str, ...]) -> None:
    """At all of the solver's solutions, and at permitted sizes drawn at random, by the table's own interpolation."""
    space, structure, measured, _ = spaced(tiny, kinds=kinds)
    _, predicted = of_clusters(space, measured)
    solver = Solver(space, measured)
    seen = set()
    for budget in np.linspace(solver.least, solver.most, 9):
        solution = solver.solve(float(budget))
        assert predicted.at(spread(space, solution.sizes)) == pytest.approx(solution.predicted, rel=1e-12)
        seen.add(solution.predicted)
    assert len(seen) > 4
    rng = np.random.default_rng(0)
    for _ in range(5):
        sizes = np.array([rng.choice(c.sizes) for c in space.clusters])
        want = 0.0
        for number, branch in enumerate(structure.branches):
            at = [
                int(np.flatnonzero((a.sizes == sizes[list(a.clusters)]).all(axis=1))[0]) for a in structure.axes(branch)
            ]
            gone = branch.block is not None and sizes[branch.block] == 0
            want += 0.0 if gone else float(measured.times(number)[tuple(at)])
        assert predicted.at(spread(space, sizes)) == pytest.approx(want, rel=1e-12)


def test_gradients_are_the_slopes_between_measured_sizes(tiny: SimpleNamespace) -> None:
    """Against differences of the table itself, at sizes within a cell and on a measured one (then below it)."""
    rng = np.random.default_rng(0)
    space, _, measured, _ = spaced(tiny, kinds=("mlp", "heads", "residual"), round_to=4)
    bent = replace(measured, values=tuple(v * rng.uniform(0.5, 1.5, v.shape) for v in measured.values))
    names, predicted = of_clusters(space, bent)
    within = np.array(spread(space, np.array([rng.uniform(c.sizes[0], c.sizes[-1]) for c in space.clusters])))
    dense = np.array(spread(space, np.array([c.sizes[-1] for c in space.clusters])), dtype=np.float64)
    for start, sides in ((within, (1e-4, -1e-4)), (dense, (0.0, -1e-4))):
        sizes = torch.tensor(start, requires_grad=True)
        (got,) = torch.autograd.grad(predicted(sizes), sizes)
        for i in range(len(names)):
            moved = [start + change * (np.arange(len(start)) == i) for change in sides]
            slope = (predicted.at(moved[0]) - predicted.at(moved[1])) / (sides[0] - sides[1])
            assert float(got[i]) == pytest.approx(slope, rel=1e-6, abs=1e-9), names[i]
    (number,) = (n for n, b in enumerate(bent.structure.branches) if ("blocks.0.mlp" in b.modules))
    mlp = names.index("blocks.0.mlp:mlp")
    knots = bent.grid.points[number][0]
    sizes = bent.structure.branches[number].axes[0].sizes[knots, 0].astype(float)
    line = bent.values[number][:, -1]  # at the dense width
    for cell in range(len(knots) - 1):
        for size in ((sizes[cell] + sizes[cell + 1]) / 2, sizes[cell + 1]):
            at = torch.tensor(dense)
            at[mlp] = size
            at.requires_grad_()
            (got,) = torch.autograd.grad(predicted(at), at)
            want = (line[cell + 1] - line[cell]) / (sizes[cell + 1] - sizes[cell])
            assert float(got[mlp]) == pytest.approx(want, rel=1e-9)


def test_monotone_tables_never_press_masks_open(tiny: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    space, _, measured, _ = spaced(tiny, kinds=("mlp", "heads", "qk", "block", "residual"), round_to=4)
    rising = []
    for v in measured.values:
        steps = rng.random(v.shape)
        for axis in range(v.ndim):
            steps = np.cumsum(steps, axis=axis)
        rising.append(steps)
    names, predicted = of_clusters(space, replace(measured, values=tuple(rising)))
    for _ in range(20):
        sizes = torch.tensor(spread(space, np.array([rng.uniform(0, c.sizes[-1]) for c in space.clusters])))
        sizes.requires_grad_()
        (slopes,) = torch.autograd.grad(predicted(sizes), sizes)
        assert float(slopes.min()) >= 0 and float(slopes.max()) > 0
    low = torch.tensor(spread(space, np.array([0.4 if c.sizes[0] else 1.0 for c in space.clusters])))
    low.requires_grad_()
    (slopes,) = torch.autograd.grad(predicted(low), low)
    blocks = torch.tensor([n.endswith("block") for n in names])
    assert float(slopes[~blocks].abs().max()) == 0  # nothing is saved below the smallest size


def test_widths_that_move_together_stand_at_their_mean() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, window_size=7, embed_dim=16, depths=(1, 1), num_heads=(2, 2)
    ).eval()
    x = torch.randn(2, 3, 56, 56)
    graph = vitprune.trace(model, x)
    ready = SimpleNamespace(model=model, x=x, graph=graph, scores=vitprune.score(graph, model))
    space, structure, measured, _ = spaced(ready, kinds=("residual", "mlp"), round_to=4)
    names, predicted = of_clusters(space, measured)
    assert structure.shared is not None and len(structure.shared.clusters) == 2
    solution = Solver(space, measured).solve(0.7)
    assert predicted.at(spread(space, solution.sizes)) == pytest.approx(solution.predicted, rel=1e-12)
    first, second = (space.clusters[i].groups[0].name for i in structure.shared.clusters)
    dense = torch.tensor(spread(space, np.array([c.sizes[-1] for c in space.clusters])))
    found = []
    for name in (first, second):  # a quarter of either costs the same
        sizes = dense.clone()
        sizes[names.index(name)] *= 0.75
        found.append(float(predicted(sizes)))
    assert found[0] == pytest.approx(found[1], rel=1e-12) and found[0] < float(predicted(dense))


def test_the_masks_cost_is_the_table_at_their_plan(tiny: SimpleNamespace) -> None:
    gates = on_model(tiny.model, tiny.graph, ("mlp", "heads", "qk", "v", "residual"), round_to=8)
    groups = {g for v in gates.vectors for g in v.groups}
    with gates.closed() as model:
        timed = Timed(model, tiny.graph, (tiny.x,), groups, clock=CountingClock())
    cost = SoftCost(gates, "latency", timed)
    assert float(cost().detach()) == pytest.approx(1.0, rel=1e-6)
    draw = torch.Generator().manual_seed(0)
    gates.alpha.data.copy_(torch.rand(gates.alpha.shape, generator=draw) * 0.7 + 0.15)
    gates.refresh()
    plan = gates.plan()
    assert len(plan.pruned()) > 5
    names = list(plan.groups)
    value = cost()
    assert float(value.detach()) == pytest.approx(timed.prediction(names).at([plan.sizes()[n] for n in names]))
    value.backward()
    assert gates.alpha.grad is not None and float(gates.alpha.grad.min()) >= 0
    assert float((gates.alpha.grad > 0).double().mean()) > 0.95  # but for sizes that are the smallest already
    gates.close()
    with pytest.raises(MaskError, match="needs a table of times"):
        SoftCost(gates, "latency")


def learn(ready: SimpleNamespace, pressure: Pressure, **more: Any) -> MaskResult:
    """The result of a short search."""
    given: dict[str, Any] = {"kinds": ("mlp", "heads", "qk", "v", "residual"), "mask_lr": 0.05, "round_to": 4}
    given["minimum"] = {"residual": 8}
    settings = MaskSettings(pressure, search=QUICK, finetune=None, **given | more)
    data = [pictures(n, size=16, shuffle=n > 16, classes=3) for n in (48, 16)]
    return train_masks(ready.model, ready.graph, *data, settings, example=(ready.x,), clock=CountingClock())


@pytest.mark.parametrize(
    ("relaxation", "target", "kinds"),
    [
        ("straight-through", "latency=0.6x", ("mlp", "heads", "qk", "v", "residual")),
        ("hard-concrete", "latency=90ms", ("mlp", "qk", "v")),
        ("top-k", "latency=0.6x", ("mlp", "qk", "v")),
    ],
)
def test_a_latency_target_is_met_as_measured(
    tiny: SimpleNamespace, relaxation: str, target: str, kinds: tuple[str, ...]
) -> None:
    wanted = Target.parse(target)
    result = learn(tiny, Pressure(target=wanted), relaxation=relaxation, kinds=kinds)
    dense = made().model
    dense_ms, small_ms = CountingClock().whole([dense, result.model], 1)[0]
    got = small_ms if wanted.absolute else small_ms / dense_ms
    assert got == pytest.approx(wanted.value, rel=0.03)
    assert result.plan.obtained["latency"]["ratio"] == pytest.approx(small_ms / dense_ms, abs=1e-4)
    assert result.plan.asked == {"latency_ms" if wanted.absolute else "latency": wanted.value}
    assert result.plan.method == "masks" and result.plan.settings["relaxation"] == relaxation
    again = shrink(dense, tiny.graph, result.plan, example=(tiny.x,))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in result.model.state_dict().items()
    }


def test_what_costs_no_time_is_not_pressed(tiny: SimpleNamespace) -> None:
    """On a clock for which MLPs take no time the masks of attention alone feel the cost."""

    class Free(CountingClock):
        def parts(self, models: Any, regions: Any, turns: int) -> Any:
            times = super().parts(models, regions, turns)
            times[:, :, [bool(r) and r[-1].endswith("mlp") for r in regions]] = 1e-3
            return times

    gates = on_model(tiny.model, tiny.graph, ("mlp", "qk", "v"), round_to=4)
    with gates.closed() as model:
        timed = Timed(model, tiny.graph, (tiny.x,), {v.name for v in gates.vectors}, clock=Free())
    Search(gates, Pressure("latency", weight=2.0), 10, timed).extra_loss(0).backward()
    assert gates.alpha.grad is not None
    for vector, slopes in zip(gates.vectors, gates._parts(gates.alpha.grad), strict=True):
        felt = float(slopes.min()) > 1e-4
        assert felt == (vector.kind != "mlp") and (felt or float(slopes.abs().max()) < 1e-12), vector.name


def test_a_weight_of_the_latency_is_measured_at_the_end(tiny: SimpleNamespace) -> None:
    result = learn(tiny, Pressure("latency", weight=0.1), mask_lr=0.03, kinds=("mlp", "qk", "v"))
    assert result.plan.asked == {"weight": 0.1} and result.plan.settings["cost"] == "latency"
    dense_ms, small_ms = CountingClock().whole([made().model, result.model], 1)[0]
    assert small_ms < 0.95 * dense_ms
    assert result.plan.obtained["latency"]["ratio"] == pytest.approx(small_ms / dense_ms, abs=1e-4)


def test_the_solver_keeps_what_the_masks_keep(tiny: SimpleNamespace) -> None:
    """Where the masks' own plan fits into the time, no unit that it keeps goes, however dear it is."""

    class Summed(CountingClock):
        def whole(self, models: Any, turns: int) -> Any:
            regions = [b.modules for b in timed.table.structure.branches]
            return self.parts(models, regions, turns).sum(axis=2)

    gates = on_model(tiny.model, tiny.graph, ("mlp", "heads", "qk", "v"), round_to=4)
    pressure = Pressure(target=Target("latency", 0.5))
    settings = MaskSettings(pressure, kinds=("mlp", "heads", "qk", "v"), round_to=4)
    draw = torch.Generator().manual_seed(1)
    gates.alpha.data.copy_(torch.rand(gates.alpha.shape, generator=draw) * 0.8 + 0.1)
    gates.refresh()
    own = gates.plan()
    with gates.closed() as model:
        groups = {v.name for v in gates.vectors}
        timed = Timed(model, tiny.graph, (tiny.x,), groups, round_to=4, clock=CountingClock())
        timed._given = Summed()
    names = list(own.groups)
    takes = timed.prediction(names).at([own.sizes()[n] for n in names])
    fits = replace(settings, pressure=Pressure(target=Target("latency", round(takes + 0.01, 4))))
    fitted = projected(gates, fits, timed)
    assert fitted.obtained["latency"]["ratio"] == pytest.approx(takes + 0.01, rel=0.03)
    assert own.pruned() and fitted.pruned()
    for name, group in own.groups.items():
        for mine, theirs in zip(group.kept, fitted.groups[name].kept, strict=True):
            assert set(mine) <= set(theirs), name


def test_out_of_reach_is_said_before_the_search(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitprune.masks.train.fit", lambda *_a, **_k: pytest.fail("trained for nothing"))
    with pytest.raises(TargetError, match=r"latency=0.001x cannot be reached: the smallest reachable .* measured"):
        learn(tiny, Pressure(target=Target.parse("latency=0.001x")), kinds=("mlp",))
    with pytest.raises(TargetError, match="above the dense model's latency"):
        learn(tiny, Pressure(target=Target.parse("latency=9s")), kinds=("mlp",))


def test_a_resumed_search_keeps_the_goal_that_it_began_with(tiny: SimpleNamespace) -> None:
    gates = on_model(tiny.model, tiny.graph, ("mlp",), round_to=8)
    goals: list[float] = []
    states: list[dict[str, torch.Tensor]] = []
    for speed in (1.0, 1.1):  # the machine's mood between two processes

        class Moody(CountingClock):
            factor = speed

            def whole(self, models: Any, turns: int) -> Any:
                return super().whole(models, turns) * self.factor

        with gates.closed() as model:
            timed = Timed(model, tiny.graph, (tiny.x,), {v.name for v in gates.vectors}, clock=Moody())
        search = Search(gates, Pressure(target=Target.parse("latency=120ms")), 10, timed)
        goals.append(search.goal)
        states.append(search.state_dict())
        search.load_state_dict(states[0])
        assert search.goal == goals[0]
    assert goals[0] != goals[1]


def test_on_the_clock_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which may be busy: hence the wide margin. The table is measured once, and kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real, count = table.measure_table, []
    monkeypatch.setattr("vitprune.latency.allocate.measure_table", lambda *a: count.append(1) or real(*a))
    origin = vitprune.load_model("shipped:fmnist-vit")
    x = torch.randn(2, 1, 28, 28)
    graph = vitprune.trace(origin.model, x)
    data = open_data("fashion-mnist-sample", origin.preprocessing, limit=64, batch_size=16)
    settings = MaskSettings(
        Pressure(target=Target.parse("latency=0.7x")), search=replace(QUICK, epochs=3, batch_size=16), finetune=None,
        kinds=("mlp", "qk", "v"), mask_lr=0.1, round_to=8,
    )  # fmt: skip
    timing = Timing(batch=16, threads=1, rounds=3, seconds=0.5)
    result = train_masks(origin.model, graph, data.train, data.val, settings, example=(x,), timing=timing)
    assert result.plan.obtained["latency"]["ratio"] == pytest.approx(0.7, rel=0.2)
    assert result.plan.obtained["latency"]["batch"] == 16
    assert count == [1] and len(list((tmp_path / "vitprune" / "latency").iterdir())) == 1


def test_commands(command: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A target, and the cost of a weight; whatever would be timed for them is counted."""
    monkeypatch.setattr("vitprune.latency.allocate.WallClock", lambda args, threads: CountingClock())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common = ("prune", TINY, "--data", image_folder, "--method", "masks", "--mask-epochs", "3", "--mask-lr", "0.1")
    common = (*common, "--batch-size", "8", "--epochs", "0", "--device", "cpu", "--amp", "no", "--json", "--quiet")
    kinds = ("--kinds", "mlp,qk,v", "--round-to", "4")
    done = command(*common, *kinds, "--target", "latency=0.8x", "--latency-batch", "4", "--threads", "1", "--out", "o")
    assert done.code == 0, done.out + done.err
    got = done.json["obtained"]["latency"]
    assert got["ratio"] == pytest.approx(0.8, rel=0.03) and (got["batch"], got["threads"]) == (4, 1)
    plan = Plan.from_json(Path("o/plan.json").read_text())
    assert sum(p.numel() for p in vitprune.load("o").parameters()) == plan.obtained["params"]["value"]
    for cost in ("params", "latency"):
        done = command(*common, *kinds, "--mask-weight", "0.03", "--mask-cost", cost, "--out", cost)
        assert done.code == 0, done.err
        plan = Plan.from_json(Path(f"{cost}/plan.json").read_text())
        assert plan.settings["cost"] == cost and plan.asked == {"weight": 0.03} and plan.pruned()
        assert ("latency" in done.json["obtained"]) == (cost == "latency")
