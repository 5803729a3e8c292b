"""Sweeps: points, fronts, resuming, failures, what is written."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

import vitprune
from conftest import TINY
from vitprune.allocate import Target
from vitprune.errors import TargetError
from vitprune.masks import MaskError
from vitprune.pipeline.learned import Learned
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.sweep_run import Point, points_of
from vitprune.report import Front, FrontPoint, Row, Time, draw_front, front_json, front_markdown, pareto

COMMON = ("--epochs", "0", "--device", "cpu", "--method", "magnitude-l2", "--no-refit", "--no-rotate")


# fronts


@pytest.mark.parametrize("seed", range(20))
def test_pareto_equals_brute_force(seed: int) -> None:
    """Over all subsets: the front is the smallest set that leaves no point without one at least as good in it."""
    rng = random.Random(seed)
    points = [(rng.randint(0, 4), rng.randint(0, 4)) for _ in range(6)]
    got = {p for p, stays in zip(points, pareto(*zip(*points, strict=True)), strict=True) if stays}  # type: ignore[arg-type]
    for size in range(1, 7):
        covering = [
            set(part)
            for part in itertools.combinations(sorted(set(points)), size)
            if all(any(a <= c and b >= d for a, b in part) for c, d in points)
        ]
        if covering:
            assert covering == [got]
            break


def made(name: str, macs: float, params: float, ms: float, top1: float) -> FrontPoint:
    """A point of a dense model of 100 MACs, 10 parameters, 2 ms and 90 %."""
    dense = Row("dense", 10, 100, 0.9, (0.88, 0.92), 1000, 2.0)
    pruned = Row("pruned", int(10 * params), int(100 * macs), top1 - 0.1, (0.1, 0.2), 1000, ms)
    tuned = Row("fine-tuned", int(10 * params), int(100 * macs), top1, (top1 - 0.02, top1 + 0.02), 1000, ms)
    return FrontPoint(name, name, (dense, pruned, tuned), Time(ms, 2.0, ms / 2, 1))


def test_each_cost_has_its_front_and_the_dense_model_competes(tmp_path: Path) -> None:
    points = (
        made("a", 0.8, 0.9, 1.8, 0.89), made("b", 0.5, 0.9, 2.2, 0.85), made("c", 0.6, 0.3, 1.0, 0.84),
        FrontPoint("d", "macs=0.01", error="TargetError: cannot | be reached"), made("e", 1.0, 1.0, 2.1, 0.9),
    )  # fmt: skip
    front = Front("a sweep", points, {"model": "m"})
    # c costs more MACs than b and is worse; b is slower than the dense model; e is no better than it and slower
    assert front.best() == {"macs": ("b", "a", "e"), "params": ("c", "a", "e"), "latency": ("c", "a")}
    found = front_json(front)
    assert found["fronts"]["latency"] == ["c", "a"] and found["model"] == "m" and found["dense"]["macs"] == 100
    assert [p["status"] for p in found["points"]] == ["done", "done", "done", "failed", "done"]
    assert found["points"][2]["front"] == ["params", "latency"]
    page = front_markdown(front, "front.png")
    assert "1,000 images" in page and "![Top-1 against cost](front.png)" in page
    assert "- macs=0.01: TargetError: cannot | be reached" in page
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert {len(line) for line in lines} == {7}
    assert [line[0] for line in lines[2:]] == ["| dense", "| a", "| b", "| c", "| e"]
    assert [line[-1].strip(" |") for line in lines[3:6]] == ["all", "MACs", "parameters, latency"]
    many = tuple(made(f"m{i}", 0.05 * i + 0.1, 0.5, 1.0, 0.05 * i + 0.3) for i in range(13))  # some of them dead
    for name, drawn in (("all", front), ("none", Front("nothing", points[3:4])), ("many", Front("many", many))):
        draw_front(drawn, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_times_of_one_batch_are_compared(tmp_path: Path) -> None:
    """Points with a latency of their own and points without: then all by what every run measures."""
    from vitprune.pipeline.sweep_run import _Folder

    dense = Row("dense", 10, 100, 0.9, None, 8, 2.0, 30.0)
    points = points_of(["macs=0.5", "latency=0.5x"])
    folder = _Folder(tmp_path)
    for point, batch, ms in zip(points, (None, 32), (1.5, 1.0), strict=True):
        place = folder.place(point)
        place.mkdir(parents=True)
        rows = [dense.to_json(), Row("pruned", 5, 50, 0.8, None, 8, ms, 10 * ms).to_json()]
        (place / "metrics.json").write_text(json.dumps({"rows": rows}))
        got = {} if batch is None else {"latency": {"value": 14.0, "dense": 29.0, "ratio": 0.48, "batch": batch}}
        (place / "plan.json").write_text(vitprune.Plan({}, obtained=got).to_json())
    assert [p.time for p in folder.points(points[1:])] == [Time(14.0, 29.0, 0.48, 32)]
    assert [p.time for p in folder.points(points[:1])] == [Time(1.5, 2.0, 0.75, 1)]
    assert [p.time for p in folder.points(points)] == [Time(15.0, 30.0, 0.5, 32), Time(10.0, 30.0, 1 / 3, 32)]


# points


def test_points() -> None:
    points = points_of(["macs=0.5", Target("latency", 12, True)], [0.5], [0.25])
    assert [p.asked for p in points] == ["macs=0.5", "latency=12ms", "weight=0.5", "rate=0.25"]
    assert [p.name for p in points] == ["macs-0.5", "latency-12ms", "weight-0.5", "rate-0.25"]
    masks = PruneSettings(Target("params", 0.1), "masks", learned=Learned(weight=9.0, cost="params"))
    assert points[0].of(masks).target == Target("macs", 0.5) and points[0].of(masks).learned.weight is None
    assert points[2].of(masks).target is None
    assert (points[2].of(masks).learned.weight, points[2].of(masks).learned.cost) == (0.5, "params")
    with pytest.raises(TargetError, match="needs points: give --targets"):
        points_of()
    with pytest.raises(TargetError, match="macs-0.5 stands there 2 times"):
        points_of(["macs=0.5", "macs=0.50x"])
    with pytest.raises(TargetError, match="one of the three"):
        Point(Target("macs", 0.5), 1.0)
    with pytest.raises(MaskError, match="weight=0.5 is for masks that are trained, but the method is auto"):
        points[2].of(PruneSettings(None))
    with pytest.raises(MaskError, match="a rate is for the method vtp"):
        points[3].of(masks)


# whole sweeps


def test_a_failing_point_does_not_stop_the_others(command: Any, image_folder: Path) -> None:
    args = ("sweep", TINY, "--data", image_folder, *COMMON, "--out", "s")
    done = command(*args, "--targets", "macs=0.7,macs=0.001,macs=0.4", "--json")
    assert done.code == 10
    assert "1 of 3 points failed (macs=0.001)" in done.err and "Traceback" not in done.err
    statuses = {p["asked"]: p["status"] for p in done.json["points"]}
    assert statuses == {"macs=0.7": "done", "macs=0.001": "failed", "macs=0.4": "done"}
    assert "cannot be reached" in done.json["points"][1]["error"]
    for name, ratio in (("macs-0.7", 0.7), ("macs-0.4", 0.4)):
        plan = vitprune.Plan.from_json(Path(f"s/points/{name}/plan.json").read_text())
        assert ratio - 0.1 < plan.obtained["macs"]["ratio"] <= ratio
        metrics = json.loads(Path(f"s/points/{name}/metrics.json").read_text())["rows"]
        assert metrics[0]["top1"] == done.json["dense"]["top1"]
        params = sum(p.numel() for p in vitprune.load(f"s/points/{name}").parameters())
        assert params == plan.obtained["params"]["value"] == metrics[-1]["params"]
    lines = list(csv.DictReader(Path("s/front.csv").read_text().splitlines()))
    assert [line["name"] for line in lines] == ["macs-0.7", "macs-0.001", "macs-0.4"]
    assert float(lines[2]["macs_share"]) <= 0.4 and "cannot be reached" in lines[1]["error"]
    assert lines[0]["images"] == "18" and lines[0]["top1_dense"] and lines[1]["macs"] == ""
    assert "Failed:" in Path("s/front.md").read_text() and Path("s/front.png").stat().st_size > 10_000
    # the dense model was measured and scored once; more points may be asked for, and finished ones stay
    assert [done.err.count(said) for said in ("scoring by magnitude-l2", "scores: those of an earlier run")] == [1, 2]
    before = Path("s/points/macs-0.7/model.safetensors").stat().st_mtime_ns
    more = command(*args, "--targets", "macs=0.7,macs=0.001,macs=0.4,params=0.5")
    assert more.code == 10 and more.err.count("scores: those of an earlier run") == 1, more.err
    assert more.err.count("done before") == 2 and "params=0.5" in more.out
    assert Path("s/points/macs-0.7/model.safetensors").stat().st_mtime_ns == before
    fewer = command(*args, "--targets", "macs=0.7")
    assert fewer.code == 6 and "the point macs=0.001 is missing" in fewer.err
    for option, name in ((("--seed", "1"), "seed"), (("--round-to", "4"), "prune.round_to")):
        other = command(*args, "--targets", "macs=0.7,macs=0.001,macs=0.4,params=0.5", *option)
        assert other.code == 6 and "holds a sweep with other settings" in other.err and f"({name})" in other.err
    assert Path("s/points/macs-0.7/model.safetensors").stat().st_mtime_ns == before
    forced = command(*args, "--targets", "macs=0.7", "--seed", "1", "--force", "--quiet")
    assert forced.code == 0, forced.err
    assert sorted(p.name for p in Path("s/points").iterdir()) == ["macs-0.7"]


def test_a_stopped_sweep_goes_on(command: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one point is finished and the second is pruned, but not saved."""
    from vitprune import store

    args = ("sweep", TINY, "--data", image_folder, *COMMON, "--out", "s", "--targets", "macs=0.7,macs=0.5")
    save, calls = store.save, []

    def stop(*given: Any, **named: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return save(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr("vitprune.store.save", stop)
        stopped = command(*args)
    assert stopped.code == 130
    assert sorted(p.name for p in Path("s/points").iterdir()) == ["macs-0.5.work", "macs-0.7"]
    assert [p["name"] for p in json.loads(Path("s/front.json").read_text())["points"]] == ["macs-0.7"]
    again = command(*args, "--json")
    assert again.code == 0, again.err
    assert "macs=0.7: done before" in again.err and "going on with the pruned model" in again.err
    assert "scoring" not in again.err
    assert sorted(p.name for p in Path("s/points").iterdir()) == ["macs-0.5", "macs-0.7"]
    assert [p["status"] for p in again.json["points"]] == ["done", "done"]
    third = command(*args, "--json")
    assert third.code == 0 and third.json == again.json
    broken = Path("s/sweep.json").write_text("{")
    assert broken and command(*args).code == 6


def test_what_all_points_would_meet_is_said_at_once(command: Any, image_folder: Path) -> None:
    args = ("sweep", TINY, "--out", "s", *COMMON)
    for more, code, said in (
        (("--data", "nowhere", "--targets", "macs=0.5"), 4, "nowhere"),
        (("--data", image_folder), 5, "a sweep needs points"),
        (("--data", image_folder, "--targets", "flops=0.5"), 5, "but got 'flops'"),
        (("--data", image_folder, "--mask-weights", "1,x"), 5, "--mask-weights must be numbers"),
        (("--data", image_folder, "--mask-weights", "1"), 9, "is for masks that are trained"),
        (("--data", image_folder, "--targets", "macs=0.5", "--method", "none"), 2, "none"),
    ):
        failed = command(*args, *more)
        assert failed.code == code and said in failed.err, failed.err
        assert not Path("s").exists()
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    for force in ((), ("--force",)):
        used = command(*args[:2], *COMMON, "--data", image_folder, "--targets", "macs=0.5", "--out", "mine", *force)
        assert used.code == 6 and Path("mine/letter.txt").is_file()


def test_weights_on_the_shipped_model(command: Any) -> None:
    """Masks: the heavier the weight, the smaller the model; a collapsed search is a failed point."""
    done = command(
        *("sweep", "shipped:fmnist-vit", "--data", "fashion-mnist-sample", "--limit", "96", "--batch-size", "16"),
        *("--method", "masks", "--mask-weights", "0.02,100", "--targets", "macs=0.6", "--mask-epochs", "2"),
        *("--mask-lr", "0.08", "--kinds", "mlp,qk,v", "--epochs", "0", "--device", "cpu", "--amp", "no", "--out", "s"),
        *("--json", "--set", "warmup_epochs=0"),
    )
    assert done.code == 10, done.err
    by = {p["asked"]: p for p in done.json["points"]}
    assert by["weight=100"]["status"] == "failed" and "model that is dead" in by["weight=100"]["error"]
    assert by["macs=0.6"]["shares"]["macs"] <= 0.6 < by["weight=0.02"]["shares"]["macs"] <= 1
    assert by["macs=0.6"]["images"] == 96 and [r["name"] for r in by["macs=0.6"]["rows"]] == ["dense", "pruned"]
