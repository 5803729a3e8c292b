"""Whole comparisons: resuming, failures, what is reused, several processes, locks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitprune
from compare_parts import METHODS, write
from conftest import TINY
from vitprune.pipeline import compare_run
from vitprune.pipeline.cells import ComparisonError, cells_of
from vitprune.pipeline.compare_folder import CompareFolder
from vitprune.pipeline.locks import locked
from vitprune.pipeline.measure import Measured
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.progress import Silent


def test_failed_cells_do_not_stop_the_others_and_are_tried_again(
    command: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (
        "compare",
        write(Path("c.toml"), image_folder, targets='["macs=0.7", "macs=0.001"]'),
        "--out",
        "o",
        "--device",
        "cpu",
    )
    real, calls = compare_run.run_prune, []

    def fails(spec: str, data: Any, settings: Any, *rest: Any, **named: Any) -> Any:
        calls.append(settings.method)
        if settings.method == "random":
            raise RuntimeError("no\nluck")
        return real(spec, data, settings, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(compare_run, "run_prune", fails)
        done = command(*args, "--json")
    assert done.code == 10 and "Traceback" not in done.err
    assert "3 of 4 cells failed (random macs=0.7 seed 0, l2 macs=0.001 seed 0, random macs=0.001 seed 0)" in done.err
    assert [
        f"cell {i} of 4: {name}" in done.err for i, name in ((1, "l2 macs=0.7 seed 0"), (4, "random macs=0.001 seed 0"))
    ]
    statuses = {(c["method"], c["asked"]): (c["status"], c.get("error", "")) for c in done.json["cells"]}
    assert statuses["l2", "macs=0.7"] == ("done", "")
    assert statuses["random", "macs=0.7"] == ("failed", "RuntimeError: no luck")
    assert "cannot be reached" in statuses["l2", "macs=0.001"][1]
    assert done.json["differences"] == [] and done.json["baseline"] == "l2"
    key = done.json["cells"][1]["cell"]
    failure = json.loads(Path(f"o/runs/{key}/failed.json").read_text())
    assert failure["method"] == "random" and "raise RuntimeError" in failure["traceback"]
    assert not Path(f"o/runs/{key}/done.json").exists()
    saved = Path(f"o/runs/{done.json['cells'][0]['cell']}/model/model.safetensors")
    before = saved.stat().st_mtime_ns
    # the failed ones again, and not the one that is there
    again = command(*args)
    assert again.code == 10 and "2 of 4 cells failed" in again.err
    assert "cell 1 of 4: l2 macs=0.7 seed 0: done before" in again.err and saved.stat().st_mtime_ns == before
    assert Path(f"o/runs/{key}/done.json").is_file() and not Path(f"o/runs/{key}/failed.json").exists()
    assert "random" in again.out and "failed: l2 macs=0.001 seed 0" in again.out
    assert "Failed:" in Path("o/table.md").read_text() and Path("o/compare.png").stat().st_size > 10_000
    assert Path("o/config.toml").read_text() == Path("c.toml").read_text()
    table = json.loads(Path("o/table.json").read_text())
    (difference,) = table["differences"]
    tops = [c["top1"] for c in table["cells"][:2]]
    assert difference["by_seed"]["mean"] == pytest.approx(tops[1] - tops[0]) and difference["by_image"]["n"] == 1
    for entry in table["cells"][:2]:  # which images were right is what accuracy says
        metrics = json.loads(Path(f"o/runs/{entry['cell']}/model/metrics.json").read_text())
        right = vitprune.report.Hits.from_json(metrics["right"])
        assert (
            right.n == 18
            and right.array().mean() == pytest.approx(entry["top1"])
            and metrics["rows"][-1]["top1"] == entry["top1"]
        )


def test_more_cells_reuse_those_that_are_there(command: Any, image_folder: Path) -> None:
    args = ("compare", "c.toml", "--out", "o", "--device", "cpu")
    write(Path("c.toml"), image_folder)
    first = command(*args, "--json")
    assert first.code == 0, first.err
    assert [row["top1"]["sd"] for row in first.json["table"]] == [None, None]
    more = '[methods.random]\n[methods.renamed]\nmethod = "magnitude-l2"\nscope = "local"\n'
    write(Path("c.toml"), image_folder, seeds="[3, 0]", targets='["params=0.6", "macs=0.7"]', more=more)
    second = command(*args, "--json")
    assert second.code == 0, second.err
    assert second.err.count("done before") == 2
    assert second.err.count("scoring by") == 4 and second.err.count("scores: those of an earlier run") == 2
    assert {c["cell"] for c in first.json["cells"]} < {c["cell"] for c in second.json["cells"]}
    tops = {(c["method"], c["asked"], c["seed"]): c["top1"] for c in second.json["cells"]}
    assert tops["renamed", "macs=0.7", 0] == first.json["cells"][0]["top1"]
    for row in second.json["table"]:
        mine = [tops[row["method"], row["asked"], seed] for seed in (0, 3)]
        assert row["top1"]["mean"] == pytest.approx(np.mean(mine)) and row["top1"]["sd"] == pytest.approx(
            np.std(mine, ddof=1)
        )
    for row in second.json["differences"]:
        pairs = [tops[row["method"], row["asked"], seed] - tops["random", row["asked"], seed] for seed in (0, 3)]
        assert row["by_seed"]["mean"] == pytest.approx(np.mean(pairs)) and sorted(row["seeds"]) == [0, 3]
    lines = list(csv.DictReader(Path("o/table.csv").read_text().splitlines()))
    assert len(lines) == 8 and all(float(line["minutes"]) >= 0 for line in lines)
    write(Path("c.toml"), image_folder, seeds="[3, 0]", targets='["params=0.6", "macs=0.7"]', more=more, workers=2)
    third = command(*args, "--json", "--quiet")
    assert third.code == 0 and third.json == second.json and third.err == ""
    # a folder of something else is kept, unless it is to be replaced; one that is not a comparison's is kept always
    write(Path("c.toml"), image_folder, limit=12)
    other = command(*args)
    assert other.code == 6 and "holds a comparison of something else (data.limit)" in other.err
    with locked(Path("o/locks/folder"), shared=True):
        busy = command(*args, "--force")
        assert busy.code == 6 and "a process works in it" in busy.err and len(list(Path("o/runs").iterdir())) == 8
    forced = command(*args, "--force", "--quiet")
    assert forced.code == 0 and len(list(Path("o/runs").iterdir())) == 2, forced.err
    Path("o/compare.json").write_text("{")
    damaged = command(*args, "--json")
    assert damaged.code == 6 and "o/compare.json cannot be read" in damaged.err and "--force" in damaged.err
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    for force in ((), ("--force",)):
        used = command("compare", "c.toml", "--out", "mine", *force)
        assert used.code == 6 and [p.name for p in Path("mine").iterdir()] == ["letter.txt"]


def test_stopped_cells_go_on(command: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before the model is saved, and once between that and the mark that says so."""
    args = ("compare", write(Path("c.toml"), image_folder), "--out", "o", "--device", "cpu")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vitprune.store.save", stop)
        assert command(*args).code == 130
    (cell,) = Path("o/runs").iterdir()
    assert sorted(p.name for p in cell.iterdir()) == ["cell.json", "model.work", "times.json"]
    with monkeypatch.context() as patched:
        patched.setattr(CompareFolder, "finish", stop)
        second = command(*args)
    assert second.code == 130 and "going on with the pruned model" in second.err and "scoring" not in second.err
    assert sorted(p.name for p in cell.iterdir()) == ["cell.json", "model", "times.json"]
    saved = (cell / "model" / "model.safetensors").stat().st_mtime_ns
    (cell / ".model.partial-x").mkdir()
    third = command(*args)
    assert third.code == 0, third.err
    assert third.err.count("scoring") == 1 and (cell / "model" / "model.safetensors").stat().st_mtime_ns == saved
    assert sorted(p.name for p in cell.iterdir()) == ["cell.json", "done.json", "model", "times.json"]
    assert len(json.loads((cell / "times.json").read_text())["seconds"]) == 3
    # a folder that was edited is named, and the others stay
    (cell / "model" / "metrics.json").write_text("{")
    broken = command(*args)
    assert broken.code == 10 and f"remove {cell}, and it is done again" in broken.out
    (cell / "model" / "plan.json").unlink()
    (cell / "model" / "plan.json").mkdir()
    lost = command(*args)
    assert lost.code == 10 and "1 of 2 cells failed" in lost.err


def test_what_all_cells_would_meet_is_said_at_once(
    command: Any, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, code, said in (
        ({"data": Path("nowhere")}, 4, "nowhere"),
        ({"targets": '["flops=0.5"]'}, 5, "but got 'flops'"),
        (
            {"more": "[methods.masks]\nmask-epochs = 1\n", "epochs": 1},
            2,
            "method masks at macs=0.7: the epochs of training",
        ),
        ({"more": METHODS, "colour": 3}, 2, "[common] has 'colour'"),
    ):
        path = write(Path("c.toml"), **{"data": image_folder, **changes})
        failed = command("compare", path, "--out", "o")
        assert failed.code == code and said in failed.err, failed.err
        assert not Path("o").exists()
    write(Path("c.toml"), image_folder)
    Path("c.toml").write_text('baseline = "l3"\n' + Path("c.toml").read_text())
    wrong = command("compare", "c.toml", "--out", "o")
    assert wrong.code == 2 and "the baseline must be one of the methods l2, random, but got 'l3'" in wrong.err
    with pytest.raises(ComparisonError, match="run in one process each, but 2 were launched"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        vitprune.compare(TINY, str(image_folder), "o", methods={"a": PruneSettings(None)}, targets=["macs=0.5"])


def test_one_budget_for_all(image_folder: Path, tmp_path: Path) -> None:
    """From Python: as many epochs with masks as without, and the seeds of the cells in all of them."""
    from vitprune.pipeline.learned import Learned
    from vitprune.recover import TrainSettings

    short = TrainSettings(epochs=3, batch_size=8, warmup_epochs=0, lr=1e-4, amp="no")
    methods = {
        "l2": PruneSettings(None, "magnitude-l2", calibration=0, rotate=False, refit=False),
        "masks": PruneSettings(None, "masks", calibration=0, learned=Learned(TrainSettings(epochs=2, batch_size=8))),
    }
    found = vitprune.compare(
        TINY, str(image_folder), tmp_path / "o", methods=methods, targets=["macs=0.7"], seeds=[4],
        training=short, device="cpu", baseline="masks",
    )  # fmt: skip
    assert [c.status for c in found.cells] == ["done", "done"], found.failed
    spent = {}
    for cell in found.cells:
        folder = tmp_path / "o" / "runs" / cell.key
        metrics = json.loads((folder / "model" / "metrics.json").read_text())
        about = json.loads((folder / "cell.json").read_text())["settings"]
        assert metrics["training"]["seed"] == 4 and about["seed"] == 4
        spent[cell.method] = len(metrics["history"]["epochs"])
        if cell.method == "masks":
            assert about["prune"]["learned"]["search"]["seed"] == 4
    assert spent == {"l2": 3, "masks": 1}
    assert [d.method for d in found.differences()] == ["l2"]
    assert not (tmp_path / "o" / "config.toml").exists()


@pytest.mark.parametrize(("limit", "measured"), [(None, 1), (100, 2)])
def test_the_dense_model_is_measured_once_for_the_same_images(
    limit: int | None, measured: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All test images: whatever the seed. A limit: the seed says which."""
    rows = []

    def row(*_: Any) -> Any:
        rows.append(Measured(vitprune.report.Row("dense", 1, 2, 0.5 + len(rows))))
        return rows[-1]

    monkeypatch.setattr(compare_run, "measured_dense", row)
    folder, data = CompareFolder(tmp_path), DataSettings("fashion-mnist-sample", limit)
    cells = cells_of({"a": PruneSettings(None, "lamp")}, ["macs=0.5"], [0, 1], None, {}, taught=True)
    for _ in range(2):
        dense = compare_run._Dense(folder, "shipped:fmnist-vit", data, "cpu", False, None, Silent())
        with folder.entered({}, {}, "", force=False):
            got = [dense.measured(cell) for cell in cells]
        assert len(rows) == measured and got == [rows[0], rows[-1]]
