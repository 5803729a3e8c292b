"""`vitprune search --method sensitivity` as a whole, on the shipped model and images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

import vitprune
from vitprune.pipeline.search_run import run_search
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.search import SearchError

DATA = DataSettings("fashion-mnist-sample", limit=300, val_fraction=0.3, val_images=60)
SETTINGS = SearchSettings(
    target=vitprune.Target("macs", 0.8),
    method="sensitivity",
    fractions=(0.5,),
    kinds=("mlp",),
    score="magnitude-l2",
    rotate=False,
    refit=False,
    calibration=0,
    baselines=False,
)


def test_curves_lie_beside_the_model_that_they_chose(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_search("shipped:fmnist-vit", DATA, SETTINGS, None, out, device="cpu")
    assert result.curves is not None and result.curves.missing == 0
    names = [f"mlp {b}" for b in range(6)]
    assert [c.part.name for c in result.curves.curves] == names
    rows = list(csv.DictReader((out / "sensitivity.csv").read_text().splitlines()))
    probes = [p for p in result.probes if p.facts]
    assert len(rows) == len(probes) == len(json.loads((out / "sensitivity.json").read_text()))
    of = {(p.facts["part"], f"{p.facts['removed']:.6g}"): p for p in probes}
    for row in rows:  # each is a probe with one part alone
        probe = of.pop((f"mlp {row['block']}", row["removed"]))
        assert list(probe.sizes) == [f"blocks.{row['block']}.mlp:mlp"]
        assert float(row["divergence"]) == pytest.approx(probe.quality.divergence, rel=1e-5)
        assert float(row["macs_saved"]) == pytest.approx(1 - probe.costs["macs"], rel=1e-5)
    assert of == {}
    assert "](sensitivity.png)" in (out / "sensitivity.md").read_text()
    assert (out / "sensitivity.png").stat().st_size > 1000
    assert result.found.costs["macs"] <= 0.8 and len(result.found.sizes) > 1
    saved = vitprune.load(result.model.folder)
    assert saved.blocks[2].mlp.fc1.out_features == result.found.sizes.get("blocks.2.mlp:mlp", 384)
    again = run_search("shipped:fmnist-vit", DATA, SETTINGS, None, out, device="cpu")
    assert again.probes == result.probes and again.found == result.found


def test_fractions_that_make_no_sense_are_refused_at_once() -> None:
    with pytest.raises(SearchError, match=r"must be in \(0, 1\], but got 1.5"):
        replace(SETTINGS, fractions=(0.5, 1.5))
