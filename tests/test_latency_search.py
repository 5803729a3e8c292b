"""Latency targets from asking to obtaining, mostly with a clock that counts parameters."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vitprune
from conftest import TINY
from latency_parts import CountingClock, make_tiny, planned, spaced
from vitprune.allocate.target import Target
from vitprune.errors import TargetError
from vitprune.latency import Timing, allocate_latency, cache, table
from vitprune.latency.clock import WallClock, at_batch
from vitprune.latency.search import Compared
from vitprune.latency.table import make_grid
from vitprune.plan import Plan
from vitprune.shrink import shrink
from zoo import CASES


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


# plans


@pytest.mark.parametrize("target", ["latency=0.8x", "latency=0.5x", "latency=0.35", "latency=120ms"])
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_what_is_asked_is_obtained(tiny, target, scope):
    plan = planned(tiny, target, scope=scope, round_to=4)
    wanted, got = Target.parse(target), plan.obtained["latency"]
    small = shrink(tiny.model, tiny.graph, plan, example=(tiny.x,))
    dense_ms, small_ms = CountingClock().whole([tiny.model, small], 1)[0]
    assert (got["value"], got["dense"]) == (pytest.approx(small_ms, abs=1e-3), pytest.approx(dense_ms, abs=1e-3))
    assert got["ratio"] == pytest.approx(small_ms / dense_ms, abs=1e-4)
    assert (got["value"] if wanted.absolute else got["ratio"]) == pytest.approx(wanted.value, rel=0.03)
    assert plan.asked == {"latency_ms" if wanted.absolute else "latency": wanted.value}
    assert got["batch"] == 1 and got["p10"] <= got["value"] <= got["p90"] and got["threads"] >= 1 and got["device"]
    assert plan.obtained["macs"]["value"] == tiny.graph.cost(plan.sizes())[0]
    assert plan.settings["notes"] == []
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("target", "wanted"), [("latency=0.6x", 0.6), ("latency=0.4x", 0.4)])
def test_a_latency_in_several_steps(tiny, monkeypatch, tmp_path, target, wanted):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clocks = []

    def counting(*_):
        clocks.append(CountingClock())
        return clocks[-1]

    monkeypatch.setattr("vitprune.latency.allocate.WallClock", counting)
    batches = [torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    small, plan = vitprune.prune(
        tiny.model, tiny.x, target, method="energy", batches=batches, steps=3, round_to=4, rotates=False
    )
    dense_ms, small_ms = CountingClock().whole([tiny.model, small], 1)[0]
    assert clocks and plan.settings["steps"] == 3
    assert small_ms / dense_ms == pytest.approx(wanted, rel=0.03)
    assert plan.obtained["latency"]["ratio"] == pytest.approx(small_ms / dense_ms, abs=1e-4)
    one, _ = vitprune.prune(tiny.model, tiny.x, target, method="energy", batches=batches, round_to=4, rotates=False)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), small.parameters(), strict=True))


def test_all_kinds_together(tiny, monkeypatch):
    monkeypatch.setattr(table, "SHARED", 2)
    monkeypatch.setattr(table, "POINTS_SHARED", {0: 1, 1: 2, 2: 2})
    plan = planned(tiny, "latency=0.4x", kinds=("heads", "qk", "v", "mlp", "residual", "block"))
    assert plan.obtained["latency"]["ratio"] == pytest.approx(0.4, rel=0.03)
    assert {plan.groups[name].kind for name in plan.pruned()} & {"residual", "mlp"}
    small = shrink(tiny.model, tiny.graph, plan, example=(tiny.x,))
    assert sum(p.numel() for p in small.parameters()) == plan.obtained["params"]["value"]


def test_settings_of_allocate_hold(tiny):
    settings = {"minimum": {"mlp": 100}, "protect": ["blocks.0.*"], "ratios": {"qk": 0.5, "v": 0.5}, "round_to": 4}
    plan = planned(tiny, "latency=0.85x", **settings)
    sizes = plan.sizes()
    assert sizes["blocks.0.mlp:mlp"] == 192 and sizes["blocks.0.attn:qk"] == 16
    assert all(sizes[f"blocks.{i}.attn:qk"] == sizes[f"blocks.{i}.attn:v"] == 8 for i in (1, 2, 3))
    assert all(100 <= sizes[f"blocks.{i}.mlp:mlp"] < 192 for i in (1, 2, 3))
    assert plan.settings["protect"] == ["blocks.0.*"]
    assert plan.settings["not_pruned"]["blocks.0.mlp:mlp"] == "protected by 'blocks.0.*'"


def test_a_whole_model_is_kept_for_the_whole_time(tiny):
    assert planned(tiny, "latency=1x").pruned() == ()


def test_out_of_reach_names_the_smallest_measured(tiny):
    smallest = planned(tiny, "latency=0.35x", round_to=4)
    with pytest.raises(TargetError, match=r"latency=0.05x cannot be reached.*smallest reachable.*latency=0\.\d+x") as e:
        planned(tiny, "latency=0.05x", round_to=4)
    share = float(str(e.value).split("is latency=")[1].split("x")[0])
    assert 0.05 < share < smallest.obtained["latency"]["ratio"]
    with pytest.raises(TargetError, match=r"latency=9e\+09ms is above the dense model's latency of .*ms; ask for less"):
        planned(tiny, "latency=9000000s")


def test_coarse_rounding_says_what_lies_nearest(tiny):
    plan = planned(tiny, "latency=0.9x", kinds=("mlp",), round_to=64, timing=Timing(tolerance=0.001))
    assert "rounding steps on either side lie further off" in plan.settings["notes"][0]
    assert plan.settings["notes"][0].startswith("obtained latency=0.")


def test_noise_is_averaged_and_a_bracket_found(tiny):
    class Noisy(CountingClock):
        random = np.random.default_rng(0)

        def whole(self, models, turns):
            times = super().whole(models, turns)
            busy = 1 + (self.random.random(times.shape) < 0.2) * self.random.random(times.shape)
            return times * busy * (1 + 0.05 * self.random.standard_normal(times.shape))

    plan = planned(tiny, "latency=0.5x", clock=Noisy(), round_to=4)
    small = shrink(tiny.model, tiny.graph, plan, check=False, example=(tiny.x,))
    dense_ms, small_ms = CountingClock().whole([tiny.model, small], 1)[0]
    assert small_ms / dense_ms == pytest.approx(0.5, rel=0.03)


def test_uncertainty_sees_slow_drifts():
    target = Target("latency", 0.5)
    rng = np.random.default_rng(0)
    calm = np.stack([np.full(140, 2.0), 1 + 0.01 * rng.standard_normal(140)], axis=1)
    drifting = calm.copy()
    drifting[:, 1] *= np.repeat(rng.uniform(0.8, 1.2, 7), 20)
    assert Compared(calm).uncertainty(target) < 0.005
    assert Compared(drifting).uncertainty(target) > 0.05


# the cache


def test_tables_are_stored_and_damaged_ones_measured_again(tiny, tmp_path, monkeypatch):
    _, structure, measured, _ = spaced(tiny)
    grid = make_grid(structure)
    key = cache.make_key(tiny.graph, (tiny.x,), 1, structure, grid, {})
    assert cache.read_table(tmp_path / "none", key, structure, grid) is None
    cache.write_table(tmp_path, key, measured)
    (path,) = tmp_path.iterdir()
    again = cache.read_table(tmp_path, key, structure, grid)
    assert again is not None and again.dense_ms == measured.dense_ms
    assert all(np.array_equal(a, b) for a, b in zip(again.values, measured.values, strict=True))
    for changed in ({"threads": 2}, {"inputs": [[8, 3, 16, 16]]}, {"model": "other"}, {"torch": "0"}):
        assert cache.read_table(tmp_path, {**key, **changed}, structure, grid) is None
    good = json.loads(path.read_text())
    broken = ["", "{", "[]", json.dumps(good | {"values": [[-1.0]] * 9}), json.dumps(good | {"dense_ms": "NaN"})]
    broken += [json.dumps(good | {"key": {}}), json.dumps(good | {"values": good["values"][:-1]}), "\x00\xff"]
    for text in broken:
        path.write_text(text, encoding="utf-8")
        assert cache.read_table(tmp_path, key, structure, grid) is None, text[:40]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "vitprune" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "vitprune" / "latency"
    cache.write_table(Path("/proc/nowhere"), key, measured)  # no error: the table can be measured again


def test_the_same_weights_through_other_operators_have_their_own_table(tiny):
    _, structure, _, _ = spaced(tiny)
    keys = []
    for name in ("timm/vit_tiny/fused", "timm/vit_tiny/eager", "timm/vit_tiny/fused"):
        case = CASES[name]
        graph = vitprune.trace(case.model(), case.example(2))
        keys.append(cache.make_key(graph, case.example(2), 1, structure, make_grid(structure), {}))
    assert keys[0]["model"] == keys[1]["model"]
    assert keys[0] != keys[1] and keys[0] == keys[2]


def test_latency_of_the_shipped_model(tmp_path, monkeypatch):
    """On the clock of this machine, which may be busy: hence the wide margin."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    origin = vitprune.load_model("shipped:fmnist-vit")
    x = torch.randn(2, 1, 28, 28)
    graph = vitprune.trace(origin.model, x)
    scores = vitprune.score(graph, origin.model)
    measured = []
    real = table.measure_table
    monkeypatch.setattr("vitprune.latency.allocate.measure_table", lambda *a: measured.append(1) or real(*a))
    timing = Timing(batch=16, threads=1, rounds=4, seconds=0.5)
    plan = allocate_latency(origin.model, graph, scores, "latency=0.7x", (x,), timing=timing)
    assert measured == [1] and len(list((tmp_path / "vitprune" / "latency").iterdir())) == 1
    assert plan.obtained["latency"]["batch"] == 16 and plan.obtained["latency"]["threads"] == 1
    small = vitprune.shrink(origin, graph, plan)
    times = WallClock(at_batch((x,), 16), threads=1).whole([origin.model, small], 100)
    assert np.median(times[:, 1] / times[:, 0]) == pytest.approx(0.7, rel=0.2)
    vitprune.save(tmp_path / "small", small, plan, origin)
    assert sum(p.numel() for p in vitprune.load(tmp_path / "small").parameters()) == plan.obtained["params"]["value"]
    allocate_latency(origin.model, graph, scores, "latency=0.8x", (x,), timing=dataclasses.replace(timing, rounds=1))
    assert measured == [1]  # from the cache


# wiring


def counted(monkeypatch, folder):
    """Whatever would be timed is counted."""
    monkeypatch.setattr("vitprune.latency.allocate.WallClock", lambda args, threads: CountingClock())
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def test_prune_in_one_call(monkeypatch, tmp_path, tiny):
    counted(monkeypatch, tmp_path)
    small, plan = vitprune.prune(tiny.model, tiny.x, "latency=0.8x", latency_batch=8, threads=1, round_to=4)
    assert plan.asked == {"latency": 0.8} and plan.method == "magnitude-l2"
    assert (plan.obtained["latency"]["batch"], plan.obtained["latency"]["threads"]) == (8, 1)
    assert sum(p.numel() for p in small.parameters()) == plan.obtained["params"]["value"]


def test_command_prunes_to_a_latency_and_the_folder_loads(command, image_folder, monkeypatch, tmp_path):
    counted(monkeypatch, tmp_path)
    done = command(
        *(
            "prune",
            TINY,
            "--data",
            image_folder,
            "--target",
            "latency=0.85x",
            "--latency-batch",
            "16",
            "--threads",
            "1",
        ),
        *("--epochs", "0", "--no-refit", "--out", "o"),
    )
    assert done.code == 0, done.err
    assert "asked latency=0.85; obtained macs=" in done.out and "latency=0.8" in done.out
    plan = Plan.from_json(Path("o/plan.json").read_text())
    assert plan.obtained["latency"]["batch"] == 16
    assert sum(p.numel() for p in vitprune.load("o").parameters()) == plan.obtained["params"]["value"]
    assert "latency" in Path("o/README.md").read_text()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("latency=12kg", "is not understood"),
        ("latency=3x", "needs a suffix ms or s"),
        ("macs=3ms", "not given in 'ms'"),
    ],
)
def test_command_refuses_malformed_latencies(command, image_folder, target, message):
    done = command("prune", TINY, "--data", image_folder, "--target", target)
    assert done.code == 5 and message in done.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "at least 1, but got batch 0"),
        ({"threads": 0}, "threads 0"),
        ({"rounds": 0}, "rounds 0"),
        ({"tolerance": 0.0}, r"tolerance in \(0, 1\)"),
        ({"seconds": 0.0}, "seconds above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(TargetError, match=message):
        Timing(**settings)
    with pytest.raises(TargetError, match=message):
        dataclasses.replace(Timing(), **settings)


def test_other_metrics_are_refused(tiny):
    with pytest.raises(TargetError, match="needs a target such as latency=0.5x or latency=12ms, but got macs=0.5"):
        planned(tiny, "macs=0.5")
