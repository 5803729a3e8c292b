"""Tables and the picture of sensitivity: every cell is there, and what is missing shows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from vitprune.errors import StoreError
from vitprune.report.sensitivity import (
    SensitivityRow,
    nats,
    print_sensitivity,
    sensitivity_csv,
    sensitivity_json,
    sensitivity_lines,
    sensitivity_markdown,
    sensitivity_tables,
)
from vitprune.report.sensitivity_picture import draw_sensitivity


def rows(blocks: int = 3) -> list[SensitivityRow]:
    """Dims at a third and two thirds, MLPs at a quarter and a half but for the last; a stream; heads not measured."""
    found = [SensitivityRow("residual", None, 0.5, 0.5, 0.031, 1.5, 0.3, {"macs": 0.5, "params": 0.5})]
    for b in range(blocks):
        for asked, removed in ((0.25, 1 / 3), (0.75, 2 / 3)):
            found.append(
                SensitivityRow("qk+v", b, asked, removed, 0.001 * (b + removed), 0.1 * b, 0.06, {"macs": 0.03})
            )
        if b == blocks - 1:
            found.append(SensitivityRow("mlp", b))
        else:
            found.append(SensitivityRow("mlp", b, 0.25, 0.25, 0.00017, -0.1, 0.07, {"macs": 0.025}))
            found.append(SensitivityRow("mlp", b, 0.5, 0.5 + 0.1 * b, 0.4, 12.0, 0.5, {"macs": 0.05}))
    return [*found, SensitivityRow("heads", 0)]


def test_lines_are_named_by_what_is_really_removed() -> None:
    lines = sensitivity_lines(rows())
    assert [line.label for line in lines] == [
        *("qk+v −33 %", "qk+v −67 %", "mlp −25 %", "mlp −50 … −60 %", "heads, not measured", "residual −50 %"),
    ]
    assert [list(line.cells) for line in lines] == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [], [None]]


def test_numbers_as_text() -> None:
    assert [nats(x) for x in (0.1814, 0.00996, 0.00841, 0.00096, 0.00017, 0.0, -1e-9)] == [
        *("181", "10", "8.4", "0.96", "0.17", "0.00", "0.00"),
    ]
    assert not SensitivityRow("a", 0, lost=0.19, error=0.1).surely
    assert SensitivityRow("a", 0, lost=-0.2, error=0.1).surely


def test_tables_hold_every_cell() -> None:
    divergence, lost, saved = sensitivity_tables(rows()).values()
    assert divergence[0] == lost[0] == ["block", *(line.label for line in sensitivity_lines(rows()))]
    assert divergence[1] == [
        ["0", "0.33", "0.67", "0.17", "400", "-", ""],
        ["1", "1.3", "1.7", "0.17", "400", "", ""],
        ["2", "2.3", "2.7", "-", "-", "", ""],
        ["all", "", "", "", "", "", "31"],
    ]
    assert lost[1][1] == ["1", "0.10", "0.10", "-0.10", "12.00", "", ""]
    assert saved[1][3] == ["all", "", "", "", "", "", "50.00"]


def test_csv_and_json_hold_every_row() -> None:
    lines = list(csv.DictReader(io.StringIO(sensitivity_csv(rows()))))
    assert len(lines) == len(rows()) == 1 + 6 + 5 + 1
    assert lines[0] == {
        "part": "residual",
        "block": "",
        "asked": "0.5",
        "removed": "0.5",
        "divergence": "0.031",
        "top1_lost": "1.5",
        "top1_error": "0.3",
        "macs_saved": "0.5",
        "params_saved": "0.5",
    }
    assert lines[-1]["part"] == "heads" and lines[-1]["removed"] == lines[-1]["macs_saved"] == ""
    values = sensitivity_json(rows())
    assert [SensitivityRow(**{"block": None, **v}) for v in values] == rows()


def test_page_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    page = sensitivity_markdown(rows(), "Sensitivity of a toy", images=2048, picture="sensitivity.png")
    assert page.startswith("# Sensitivity of a toy\n") and "](sensitivity.png)" in page
    assert "of 2,048 images" in page and "± 0.12 at best and ± 0.98 at worst" in page
    assert "| 2 | 2.3 | 2.7 | - | - |  |  |" in page
    assert "not" in sensitivity_markdown([SensitivityRow("mlp", 0)], "Nothing")
    print_sensitivity(rows(), "toy")
    shown = capsys.readouterr().out
    assert "toy: Top-1 lost, points" in shown and "12.00" in shown


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, given: list[SensitivityRow]) -> Any:
    """The figure that is written."""
    from matplotlib.figure import Figure

    kept: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: kept.append(self))
    draw_sensitivity(given, path, "toy")
    return kept[0]


def test_picture_holds_every_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = drawn(monkeypatch, tmp_path / "a.png", rows())
    upper, lower, *bars = figure.axes
    texts = [sorted(t.get_text() for t in panel.texts) for panel in (upper, lower)]
    measured = [row for row in rows() if row.divergence is not None]
    assert texts[0] == sorted(nats(row.divergence or 0.0) for row in measured)
    assert texts[1] == sorted(f"{row.lost:.2f}" for row in measured)
    for panel in (upper, lower):
        blank = [p for p in panel.patches if p.get_hatch()]
        assert len(blank) == 2 + 1 and len(panel.patches) == len(measured) + len(blank)  # only block 0 has heads
        assert [t.get_text() for t in panel.get_yticklabels()] == [line.label for line in sensitivity_lines(rows())]
        assert [t.get_text() for t in panel.get_xticklabels()] == ["0", "1", "2"]
    assert "nat" in bars[0].get_ylabel() + upper.get_title(loc="left")
    assert "points" in bars[1].get_ylabel() + lower.get_title(loc="left")
    assert "not measured" in [t.get_text() for t in figure.legends[0].get_texts()]


@pytest.mark.parametrize("given", [rows(24), rows(1), [SensitivityRow("mlp", 0)], [rows()[0]], []])
def test_picture_is_written(given: list[SensitivityRow], tmp_path: Path) -> None:
    draw_sensitivity(given, tmp_path / "sensitivity.png", "toy")
    assert (tmp_path / "sensitivity.png").stat().st_size > 1000


def test_picture_into_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        draw_sensitivity(rows(), tmp_path / "missing" / "a.png")
