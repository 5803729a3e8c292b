"""Reports: folders that hold no run, damaged files, and pages that are there already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report_parts import write_model
from vitprune.errors import StoreError
from vitprune.pipeline.report_read import read_run
from vitprune.pipeline.report_run import MARK, check_out, run_report, write_page


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    def fails(path: Path, match: str) -> None:
        with pytest.raises(StoreError, match=match):
            run_report([path], tmp_path / "page.html")
        assert not (tmp_path / "page.html").exists() and not (tmp_path / "page_files").exists()

    fails(tmp_path / "none", "needs the folder of a run, but .*none is not there")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"holds none of plan.json, sweep.json, .*give what --out was")
    (tmp_path / "file").write_text("x")
    fails(tmp_path / "file", "is a file")
    (tmp_path / "stopped.work").mkdir()
    (tmp_path / "stopped.work" / "run.json").write_text("{}")
    for name in ("stopped", "stopped.work"):
        fails(
            tmp_path / name, "needs a finished run, but .* was stopped on its way .*the command that began it goes on"
        )
    (tmp_path / "young").mkdir()
    about = {"settings": {"model": "m", "data": {"spec": "d"}}, "points": ["macs=0.5"], "command": "vitprune sweep m"}
    (tmp_path / "young" / "sweep.json").write_text(json.dumps(about))
    fails(tmp_path / "young", "has none yet; the command that began it goes on: vitprune sweep m")


def damage(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("metrics.json", None, "metrics.json.* is not valid JSON"),
        ("metrics.json", lambda m: m.pop("rows"), "no rows in metrics.json"),
        ("metrics.json", lambda m: m["rows"][0].pop("macs"), "is damaged, or was edited .*macs.*again with --force"),
        ("metrics.json", lambda m: m.update(rows=[]), "is damaged"),
        (
            "metrics.json",
            lambda m: m["answers"]["saved"].update(predicted="AAAA"),
            "3 bytes are no classes of 60 images",
        ),
        ("metrics.json", lambda m: m["right"].pop("n"), "is damaged, or was edited"),
        ("plan.json", lambda p: p.pop("groups"), "groups"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, change: Any, match: str) -> None:
    folder = write_model(tmp_path / "run")
    if change is None:
        (folder / name).write_text('{"rows": [')
    else:
        damage(folder / name, change)
    with pytest.raises(StoreError, match=match):
        read_run(folder, "run")


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "run")
    page = tmp_path / "page.html"
    run_report([folder], page, images=False)
    before = page.read_bytes()
    with pytest.raises(StoreError, match="page.html is in use; choose another --out, or --force"):
        run_report([folder], page)
    page.unlink()
    with pytest.raises(StoreError, match="page_files, which is in use"):
        run_report([folder], page)
    assert before
    write_page(page, check_out(page, force=True), "anew", {"x.csv": b"1"}, force=True)
    assert page.read_text() == "anew"
    assert {p.name for p in (tmp_path / "page_files").iterdir()} == {"x.csv", MARK}
    own = tmp_path / "mine_files"
    own.mkdir()
    (own / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="vitprune did not write it; it is not replaced"):
        write_page(tmp_path / "mine.html", check_out(tmp_path / "mine.html", force=True), "", {}, force=True)
    assert not (tmp_path / "mine.html").exists()
    assert (own / "thesis.tex").read_text() == "x"
    with pytest.raises(StoreError, match="is a folder"):
        run_report([folder], tmp_path, force=True)
