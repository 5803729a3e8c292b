"""`vitprune export` as a command: what it leaves, and that failures leave nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitprune
from conftest import TINY
from vitprune.evaluate import latency
from vitprune.export import FORMATS, ExportError
from vitprune.pipeline.export_settings import ExportSettings
from vitprune.preprocessing import Preprocessing

QUICK = ("--no-compile", "--latency-batch", "1,2", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A pruned tiny ViT in a folder that knows its classes."""
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6")
    small = vitprune.shrink(origin, graph, plan)
    classes = ("blue", "green", "red")
    return vitprune.save(tmp_path_factory.mktemp("saved") / "small", small, plan, origin, classes=classes)


def test_export_leaves_a_file_and_what_was_measured(command, saved, image_folder):
    done = command("export", saved, "--format", "pt2", "--data", image_folder, "--out", "o", "--json", *QUICK)
    assert done.code == 0, done.err
    assert sorted(p.name for p in Path("o").iterdir()) == ["export.json", "model.pt2"]
    assert json.loads(Path("o/export.json").read_text()) == done.json
    parity = done.json["parity"]
    assert parity["images"] == 18 and parity["agreement"] == 1 and parity["largest"] < 1e-5
    right = command("eval", saved, "--data", image_folder, "--json", "--quiet").json["top1"]
    assert parity["top1"] == parity["top1_model"] == right
    assert done.json["about"]["classes"] == ["blue", "green", "red"]
    rows = [(r["model"], r["by"], r["batch"], r["threads"]) for r in done.json["speed"]]
    named = [(m, by) for m in ("dense", "pruned") for by in ("eager", "pt2 float32")]
    assert rows == [(m, by, b, 1) for b in (1, 2) for m, by in named]
    assert all(0 < r["p10_ms"] <= r["median_ms"] <= r["p90_ms"] for r in done.json["speed"])
    program = torch.export.load("o/model.pt2")
    x = torch.randn(3, 3, 16, 16)
    assert torch.allclose(program.module()(x), vitprune.load(saved)(x), atol=1e-6)


def test_tables_name_the_file(command, saved, image_folder):
    done = command("export", saved, "--format", "pt2", "--data", image_folder, *QUICK)
    assert done.code == 0, done.err
    for text in ("same class 100.00 %", "top-1", "x dense eager", "pruned", "saved: runs/small-pt2/model.pt2"):
        assert text in done.out, done.out


def test_without_data_the_images_are_random_and_said_to_be(command):
    done = command("export", TINY, "--format", "pt2", "--out", "o", "--no-latency", "--json", "--quiet")
    assert done.code == 0, done.err
    assert done.json["compared_on"] == "random images (no --data)" and done.json["parity"]["top1"] is None
    assert done.json["speed"] == [] and done.json["parity"]["images"] == 33


@pytest.fixture
def refused(command):
    """Runs an export that must fail with one line, and leave the working folder as it was."""

    def run(code, *arguments):
        before = sorted(p for p in Path.cwd().rglob("*"))
        done = command("export", *arguments, "--quiet", "--no-latency")
        assert done.code == code, (done.code, done.err)
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert done.out == "" and "Traceback" not in done.err
        assert sorted(p for p in Path.cwd().rglob("*")) == before
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--format", "onxx"), 13, "did you mean onnx?"),
        (("--format", "pt2", "--quantize", "int8"), 13, "formats that have it: onnx, openvino, executorch"),
        (("--format", "hf", "--quantize", "int8"), 13, "hf has no int8"),
        (("--format", "onnx", "--quantize", "int4"), 13, "int8, int8-dynamic, but got 'int4'"),
        (("--quantize", "int8"), 13, "needs --data: its ranges are taken from real images"),
        (("--quantize", "int8-dynamic"), 13, "needs --data: it is judged by real images"),
        (("--format", "pt2", "--license", "mit"), 13, "are for --format hf, but the format is pt2"),
        (("--format", "hf", "--repo", "mine"), 13, "--repo must be OWNER/NAME"),
        (("--format", "hf", "--license", "my own"), 13, "such as apache-2.0 or mit, but got 'my own'"),
        (("--format", "hf", "--batch", "2"), 13, "--batch is for files that other runtimes run"),
        (("--format", "pt2", "--max-drop", "-1"), 13, "max_drop must be at least 0, but got -1"),
        (("--format", "pt2", "--data", "nowhere"), 4, "no folder nowhere"),
    ],
)
def test_wrong_options(refused, saved, arguments, code, text):
    assert text in refused(code, saved, *arguments)


def test_folders_that_are_none_of_vitprunes(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "neither plan.json nor config.json" in refused(3, "empty", "--format", "pt2")


def test_outputs_in_use_stay(refused, saved):
    Path("o").mkdir()
    Path("o/mine.txt").write_text("mine")
    assert "in use" in refused(6, saved, "--format", "pt2", "--out", "o")
    assert "no export.json, so vitprune did not write it" in refused(
        6, saved, "--format", "pt2", "--out", "o", "--force"
    )
    assert Path("o/mine.txt").read_text() == "mine"


def test_other_classes_than_the_models(refused, saved, image_folder, tmp_path):
    for split in ("train", "val"):
        for old, new in (("blue", "blue"), ("green", "grey"), ("red", "red")):
            (tmp_path / "other" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "other" / split / new).symlink_to(image_folder / split / old)
    shown = refused(4, saved, "--format", "pt2", "--data", "other")
    assert "class 1 is 'grey', not 'green'" in shown


def test_a_file_that_differs_is_not_kept(command, refused, saved, monkeypatch):
    """The runtime's answers are a little wrong: nothing new stays, and what an older call left does."""
    done = command("export", saved, "--format", "pt2", "--out", "o", "--no-latency", "--quiet")
    assert done.code == 0, done.err
    before = {p.name: p.read_bytes() for p in Path("o").iterdir()}
    right = FORMATS["pt2"]

    def wrong(folder, threads):
        runner = right.open(folder, threads)
        return lambda images: runner(images) * np.float32(1.002)

    monkeypatch.setitem(FORMATS, "pt2", replace(right, open=wrong))
    assert "differ by up to 0.002 of the largest" in refused(13, saved, "--format", "pt2", "--out", "o", "--force")
    assert "nothing was kept" in refused(13, saved, "--format", "pt2", "--out", "new")
    assert {p.name: p.read_bytes() for p in Path("o").iterdir()} == before


def test_int8_that_loses_too_much_is_not_kept(refused, saved, image_folder, monkeypatch):
    """All answers become the class of the fewest right ones."""
    right = FORMATS["onnx"]
    pytest.importorskip("onnxruntime")

    def blind(folder, threads):
        return lambda images: np.eye(3, dtype=np.float32)[np.zeros(len(images), int)] * np.float32(5)

    monkeypatch.setitem(FORMATS, "onnx", replace(right, open=blind))
    options = ("--quantize", "int8", "--data", image_folder, "--calibration", "32", "--out", "o")
    shown = refused(13, saved, *options)  # a third is right by chance; the random weights are right about more
    assert "points of top-1 on 18 validation images" in shown and "to 33.33 %), more than --max-drop 1" in shown


def test_too_few_calibration_images(refused, saved, image_folder):
    pytest.importorskip("onnxruntime")
    shown = refused(13, saved, "--quantize", "int8", "--data", image_folder, "--calibration", "8")
    assert "--calibration must be at least the batch size, 32, but there are 8 images" in shown


def test_settings_say_what_is_out_of_range():
    with pytest.raises(ExportError, match="latency_batches must be at least 1, but got 0"):
        ExportSettings(latency_batches=(1, 0))


def test_what_torch_compile_cannot_do_is_left_out_with_a_note(saved, tmp_path, monkeypatch):
    def fails(model, **_):
        def call(_x):
            raise RuntimeError("no compiler\nhere")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    found = vitprune.export(saved, tmp_path / "o", "pt2", settings=ExportSettings(latency_batches=(1,), threads=1))
    assert {r.by for r in found.speed} == {"eager", "pt2 float32"}
    assert [n for n in found.notes if "RuntimeError: no compiler" in n] == list(found.notes) != []


def test_the_clock_takes_other_callables():
    seen = []
    rows = latency(
        {"module": torch.nn.Identity(), "file": lambda x: seen.append(x.shape)},
        torch.zeros(2, 1, 4, 4),
        batch_sizes=(3,),
        warmup=1,
        repeats=2,
    )
    assert [r.name for r in rows] == ["module", "file"] and seen == [torch.Size((3, 1, 4, 4))] * 3


def test_random_images_have_the_models_shape():
    from vitprune.pipeline.export_run import _random

    shape = Preprocessing((4, 6), (0.5,), (0.25,), "bilinear", 1)
    assert [tuple(images.shape) for images, _ in _random(shape)] == [(1, 1, 4, 6), (7, 1, 4, 6), (25, 1, 4, 6)]
