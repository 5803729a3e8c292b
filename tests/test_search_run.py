"""`vitprune search` as a whole, on the shipped model and images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vitprune
from formula import quality
from vitprune.cli.app import app
from vitprune.data import open_data
from vitprune.errors import StoreError, VitpruneError
from vitprune.pipeline.pick import picked
from vitprune.pipeline.search_run import run_pick, run_search
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.preprocessing import Preprocessing
from vitprune.recover import TrainSettings
from vitprune.search import Drop, Judge, Probe, Record, SearchError

MODEL, DATA = "shipped:fmnist-vit", DataSettings("fashion-mnist-sample", limit=400, val_fraction=0.3, val_images=100)
QUICK = SearchSettings(max_drop=12.0, calibration=32, trials=3, baselines=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search that was stopped by its limit, and went on."""
    out = tmp_path_factory.mktemp("search") / "run"
    first = run_search(MODEL, DATA, QUICK, None, out, device="cpu")
    assert len(first.probes) == 3
    result = run_search(MODEL, DATA, replace(QUICK, trials=5, baselines=True), None, out, force=False, device="cpu")
    return out, result


def val_quality(model: torch.nn.Module) -> tuple[float, float]:
    preprocessing = vitprune.load_model(MODEL).preprocessing
    data = open_data(DATA.spec, preprocessing, limit=DATA.limit, val_fraction=DATA.val_fraction, val_images=100)
    judged = Judge(vitprune.load_model(MODEL).model, data.val)(model)
    return judged.top1, judged.divergence


def test_the_saved_model_is_the_probe(folder):
    _out, result = folder
    saved = vitprune.load(result.model.folder)
    top1, divergence = val_quality(saved)
    assert top1 == pytest.approx(result.found.quality.top1)
    assert divergence == pytest.approx(result.found.quality.divergence, rel=1e-3)
    about = json.loads((result.model.folder / "probe.json").read_text())
    assert about["probe"]["sizes"] == dict(result.found.sizes)
    assert result.model.plan.obtained["macs"]["ratio"] == pytest.approx(result.found.costs["macs"])


def test_it_is_measured_on_images_that_it_did_not_see(folder):
    _out, result = folder
    metrics = json.loads((result.model.folder / "metrics.json").read_text())
    assert metrics["rows"][0]["images"] == 400 and result.found.quality.images == 100
    assert metrics["data"]["separate_test"] is True


def test_files_hold_all_probes(folder):
    out, result = folder
    rows = list(csv.DictReader((out / "probes.csv").read_text().splitlines()))
    assert [int(r["probe"]) for r in rows] == [p.number for p in result.probes]
    assert [r for r in rows if r["chosen_for"]][-1]["probe"] == str(result.found.number)
    widths = result.model.folder.with_name(f"{result.model.folder.name}-widths.png")
    assert widths.read_bytes().startswith(b"\x89PNG")
    assert (out / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert result.goal.name in (out / "probes.md").read_text()
    assert result.model.folder == out / "models" / f"{result.goal.name}-probe-{result.found.number}"
    assert {p.origin for p in result.probes} >= {"coarse", "uniform"}


def test_another_goal_uses_the_probes_that_are_there(folder):
    out, result = folder
    known = len(Record(out / "probes.jsonl").probes)
    looser = replace(QUICK, max_drop=14.0, trials=1)
    again = run_search(MODEL, DATA, looser, None, out, device="cpu")
    assert len(again.probes) <= known + 1
    assert again.found.costs["macs"] <= result.found.costs["macs"]
    assert len(json.loads((out / "found.json").read_text())) == 2


def test_a_point_is_picked_later(folder):
    out, _ = folder
    probes = Record(out / "probes.jsonl").probes
    bound = sorted(p.costs["macs"] for p in probes)[0] + 1e-6
    made = run_pick(out, f"macs<{bound}", None, device="cpu")
    wanted = picked(probes, f"macs<{bound}")
    assert made.folder == out / "picks" / f"picked-probe-{wanted.number}"
    top1, divergence = val_quality(vitprune.load(made.folder))
    assert top1 == pytest.approx(wanted.quality.top1)
    assert divergence == pytest.approx(wanted.quality.divergence, rel=1e-3)


def test_a_point_is_picked_and_fine_tuned(folder, tmp_path):
    out, _ = folder
    training = TrainSettings(epochs=1, batch_size=64)
    made = run_pick(out, "drop<14", training, tmp_path / "tuned", device="cpu")
    assert [row.name for row in made.rows] == ["dense", "pruned", "refitted", "fine-tuned"]


def test_another_search_is_not_overwritten(folder):
    out, _ = folder
    before = (out / "probes.jsonl").read_bytes()
    with pytest.raises(StoreError, match=r"holds a search with other settings \(probe.calibration\); choose another"):
        run_search(MODEL, DATA, replace(QUICK, calibration=16), None, out, device="cpu")
    with pytest.raises(StoreError, match=r"other settings \(seed\)"):
        run_search(MODEL, DATA, QUICK, None, out, seed=1, device="cpu")
    assert (out / "probes.jsonl").read_bytes() == before


def test_probes_may_be_trained(tmp_path):
    settings = replace(QUICK, target=vitprune.Target.parse("macs=0.5"), max_drop=None, trials=1)
    plain = run_search(MODEL, DATA, settings, None, tmp_path / "a", device="cpu").found
    training = TrainSettings(epochs=1, batch_size=32, lr=1e-4)
    tuned = run_search(MODEL, DATA, replace(settings, probe=training), None, tmp_path / "b", device="cpu").found
    assert tuned.sizes == plain.sizes and tuned.quality.divergence != plain.quality.divergence
    assert tuned.costs["macs"] <= 0.5


class FixedOverhead:
    """A device on which a tenth of the time does not shrink, which the table does not know."""

    dense_ms = 10.0

    def __init__(self, model, graph, *rest, **more):
        self.graph = graph

    def prediction(self, names):
        self.names = names
        return self

    def at(self, sizes):
        return self.graph.cost(dict(zip(self.names, sizes, strict=True)))[0] / self.graph.cost()[0]

    def measured(self, model, plan):
        share = 0.1 + 0.9 * self.graph.cost(plan.sizes())[0] / self.graph.cost()[0]
        return replace(plan, obtained={**plan.obtained, "latency": {"ratio": share}})


def test_a_latency_is_searched_by_prediction_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("vitprune.pipeline.search_work.Timed", FixedOverhead)
    settings = replace(QUICK, target=vitprune.Target.parse("latency=5ms"), max_drop=None, trials=1)
    found = run_search(MODEL, DATA, settings, None, tmp_path / "run", device="cpu").found
    assert set(found.costs) == {"macs", "params", "latency"}
    assert 0.1 + 0.9 * found.costs["latency"] == pytest.approx(0.5, rel=0.03)
    low = replace(settings, target=vitprune.Target.parse("latency=0.19x"))
    with pytest.raises(SearchError, match=r"latency=0.19x cannot be reached with these kinds"):
        run_search(MODEL, DATA, low, None, tmp_path / "run", device="cpu")


def probe(number: int, macs: float, lost: float) -> Probe:
    return Probe(number, "x", "", {}, {}, {"macs": macs, "params": macs}, quality(lost), Drop(lost, 0.1), 1.0)


def test_what_a_pick_means():
    probes = [probe(1, 0.5, 0.2), probe(2, 0.4, 0.8), probe(3, 0.35, 0.9), probe(4, 0.3, 2.0)]
    assert picked(probes, "macs<0.4").number == 3
    assert picked(probes, " macs <= 0.4").number == 2
    assert picked(probes, "drop<1").number == 3
    assert picked(probes, "params<1").number == 1
    for text in ("macs", "flops<1", "macs>0.3", "macs<0..3", "drop<-1"):
        with pytest.raises(SearchError, match="picked by a metric and a bound"):
            picked(probes, text)
    with pytest.raises(SearchError, match="the nearest has macs=0.3"):
        picked(probes, "macs<0.1")
    with pytest.raises(SearchError, match="no probe of this search has a latency"):
        picked(probes, "latency<0.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_drop": None}, "either a drop that is permitted"),
        ({"target": vitprune.Target("macs", 0.5)}, "either a drop that is permitted"),
        ({"max_drop": 0.5}, "100 validation images are too few"),
        ({"kinds": ("block",), "max_drop": 20.0, "protect": ("*",)}, "nothing of the model may shrink"),
        ({"score": "best"}, "best"),
        ({"max_drop": None, "target": vitprune.Target("macs", 1.0)}, "is the dense model itself"),
    ],
)
def test_bad_input_is_met_before_anything_is_written(change, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(VitpruneError, match=message):
        run_search(MODEL, DATA, replace(QUICK, **change), None, out, device="cpu")
    assert not (out / "models").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "method of a search must be one of"),
        ({"per": "layer"}, "shares are searched per module, kind, block"),
        ({"trials": 0}, "trials above 0, but got 0"),
        ({"minutes": -1.0}, "minutes above 0, but got -1"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(SearchError, match=message):
        replace(QUICK, **change)


def test_a_folder_without_a_search_has_nothing_to_pick(tmp_path):
    with pytest.raises(StoreError, match="holds no search: there is no search.json"):
        run_pick(tmp_path, "macs<0.5", None)


def test_the_command(tmp_path, capsys):
    options = ["--data", DATA.spec, "--limit", "200", "--val-fraction", "0.3", "--max-drop", "20", "--trials", "2"]
    options += ["--calibration", "16", "--no-fixed", "--out", str(tmp_path / "run"), "--quiet"]
    app(["search", MODEL, *options, "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert shown["goal"].startswith("the smallest macs at a drop of at most 20 points")
    assert shown["found"]["costs"]["macs"] < 1 and len(shown["rows"]) == 3
    app(["search", str(tmp_path / "run"), "--pick", "macs<1", "--out", str(tmp_path / "p")], standalone_mode=False)
    assert "vitprune.load" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        app(["search", MODEL, "--max-drop", "1"], standalone_mode=False)
    assert left.value.code == 4 and "give --data" in capsys.readouterr().err


# ---- images that nothing was chosen by ----


@pytest.mark.parametrize("with_val", [True, False])
def test_test_images_are_split_off(tmp_path, with_val):
    shade = 0
    for split in ("train", "val") if with_val else ("",):
        for name in ("a", "b"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for _ in range(20):
                shade += 1
                Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(place / f"{shade}.png")
    preprocessing = Preprocessing(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, channels=3)
    data = open_data(str(tmp_path), preprocessing, val_fraction=0.25, separate_test=True, calibration=8)
    parts = [
        {round(float(x.mean()) * 255) for images, _ in s for x in images} for s in (data.train, data.val, data.test)
    ]
    train, val, test = parts
    assert not train & val and not train & test and not val & test
    assert train | val | test == set(range(1, shade + 1))
    assert len(test) == (40 if with_val else 10) and len(val) == (10 if with_val else 8)
    calibration = {round(float(x.mean()) * 255) for images, _ in data.calibration for x in images}
    assert calibration <= train
