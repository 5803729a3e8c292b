"""`vitprune report` and `inspect --html` as commands; what runs keep for them; tables in pipes."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY
from report_parts import write_model
from vitprune.cli.app import COMMANDS
from vitprune.cli.run import command_line
from vitprune.data import open_data
from vitprune.pipeline.opening import open_model
from vitprune.report import Answers, Row, print_rows
from vitprune.report.terminal import plain, print_table


def test_every_command_prints_json_when_asked() -> None:
    assert [name for name, command in COMMANDS.items() if "json" not in inspect.signature(command).parameters] == []


def test_report_as_a_command(command: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "small")
    done = command("report", "small", "--no-images")
    assert done.code == 0, done.err
    assert done.out.startswith("Half of the MACs, ")
    assert "not on the page: Images whose prediction changed: left out by --no-images" in done.out
    assert done.out.splitlines()[-1] == "saved: report.html  (pictures and tables in report_files)"
    assert Path("report_files/widths.csv").is_file()
    again = command("report", "small")
    assert (again.code, again.out) == (6, "")
    assert "report.html is in use; choose another --out, or --force" in again.err
    told = command("report", "small", "--no-images", "--force", "--json", "--quiet")
    assert told.json["models"] == ["small"]
    assert told.json["files"] == "report_files"
    assert told.err == ""
    assert "vitprune report small --no-images --force --json --quiet" in Path("report.html").read_text()
    assert command("report", "nowhere").code == 6
    assert command("report").code == 2


def test_inspect_as_a_page(command: Any, tmp_path: Path) -> None:
    done = command("inspect", TINY, "--html", "model.html", "--json")
    assert done.code == 0, done.err
    lines = Path("model_files/groups.csv").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in lines[1:]) == sorted(g["name"] for g in done.json["groups"])
    assert len(lines) == 1 + len(done.json["groups"])
    costs = Path("model_files/costs.csv").read_text().splitlines()
    assert sum(int(line.split(",")[6]) for line in costs[1:]) == sum(g["macs"] for g in done.json["groups"])
    assert command("inspect", TINY, "--html", "model.html").code == 6


def test_runs_keep_what_a_report_needs(command: Any, image_folder: Path) -> None:
    """The predicted classes give the measured top-1 again, and are those that the saved model gives."""
    common = (
        "--data",
        image_folder,
        "--device",
        "cpu",
        "--quiet",
        "--epochs",
        "0",
        "--method",
        "magnitude-l2",
        "--no-refit",
    )
    done = command("sweep", TINY, *common, "--targets", "macs=0.8,macs=0.5", "--out", "s")
    assert done.code == 0, done.err
    found = []
    for name in ("macs-0.8", "macs-0.5"):
        metrics = json.loads(Path("s/points", name, "metrics.json").read_text())
        for key, row in (("dense", metrics["rows"][0]), ("saved", metrics["rows"][-1])):
            labels, predicted = Answers.from_json(metrics["answers"][key]).arrays()
            assert float((labels == predicted).mean()) == pytest.approx(row["top1"])
        assert metrics["right"] == Answers.from_json(metrics["answers"]["saved"]).hits().to_json()
        assert metrics["rows"][-1]["memory_mib"] < metrics["rows"][0]["memory_mib"]
        assert metrics["run"]["seed"] == 0
        found.append(metrics["answers"]["dense"])
    assert found[0] == found[1] == json.loads(Path("s/dense.json").read_text())["answers"]  # measured once
    opened = open_model("s/points/macs-0.5")
    split = open_data(str(image_folder), opened.loaded.preprocessing).val
    given = np.concatenate([opened.model(x).argmax(1).numpy() for x, _ in split])
    saved = Answers.from_json(metrics["answers"]["saved"])
    assert saved.arrays()[1].tolist() == given.tolist()
    assert saved.images == split.identity()
    assert json.loads(Path("s/sweep.json").read_text())["command"].startswith("vitprune sweep 'timm:vit_tiny")
    again = command("sweep", TINY, *common, "--targets", "macs=0.8,macs=0.5", "--out", "s")  # reads dense.json
    assert again.code == 0, again.err
    told = command("report", "s", "--json", "--quiet")
    assert told.code == 0, told.err
    assert told.json["models"] == ["macs=0.8", "macs=0.5"]


def test_models_that_were_trained_alone_compare_image_by_image(command, image_folder: Path) -> None:
    common = ("--data", image_folder, "--device", "cpu", "--quiet", "--epochs", "1")
    assert command("train", TINY, *common, "--out", "dense").code == 0
    assert command("finetune", "dense", *common, "--out", "tuned").code == 0
    kept = {name: json.loads(Path(name, "metrics.json").read_text()) for name in ("dense", "tuned")}
    for metrics in kept.values():
        for key, row in (("dense", metrics["rows"][0]), ("saved", metrics["rows"][-1])):
            labels, predicted = Answers.from_json(metrics["answers"][key]).arrays()
            assert float((labels == predicted).mean()) == pytest.approx(row["top1"])
    assert kept["tuned"]["answers"]["dense"] == kept["dense"]["answers"]["saved"]
    told = command("report", "dense", "tuned", "--out", "both.html", "--json", "--quiet")
    assert told.code == 0, told.err
    assert "they are of pruned models" in json.dumps(told.json["missing"])


def test_the_command_line_is_kept_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["x", "search", "a b", "--storage", "postgresql://me:se:cret@host/db", "--data", "cifar10:/x@y"]
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == "vitprune search 'a b' --storage 'postgresql://me:***@host/db' --data cifar10:/x@y"


ROWS = (Row("dense [/red]", 1_000_000, 40_000_000, 0.925), Row(":smile: [b]x", 500_000, 20_000_000, 0.1))


def test_tables_in_a_pipe_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS, "a [title]")
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "a [title]",
        "model         top-1 %     parameters           MACs",
        "dense [/red]    92.50        1.000 M        40.00 M",
        ":smile: [b]x    10.00  0.500 M (50%)  20.00 M (50%)",
    ]
    assert out.isascii()
    assert plain(["a", "b"], [["x", "1"]], left=(), caption="below") == "a  b\nx  1\nbelow"


def test_tables_on_a_terminal_are_drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    print_table(["name", "n"], [["[/red] :smile:", "1"], ["b", "22"]], "title [x]", sections=(0,), caption="c")
    out = capsys.readouterr().out
    for text in ("[/red] :smile:", "title [x]", "22", "┃"):
        assert text in out
