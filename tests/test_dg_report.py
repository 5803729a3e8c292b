"""Means, worst domains, drops and choices of a study, against numbers worked out by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vitprune.errors import StoreError
from vitprune.pipeline.report_run import run_report
from vitprune.report import DomainCell, DomainScores, DomainStudy, domains_csv, domains_json, domains_markdown
from vitprune.report.domains import CONTROL
from vitprune.report.domains_breaks import Edge, breaks
from vitprune.report.domains_drops import draw_drops, drop_panels, drops_of
from vitprune.report.domains_json import domains_from_json
from vitprune.report.domains_picture import draw_domains
from vitprune.report.domains_table import (
    accuracy_table,
    break_table,
    cost_table,
    print_domains,
    selection_table,
)


def cell(
    held: str, seed: int, inside: float, outside: float, form: str = "dense", score: str = "", **more
) -> DomainCell:
    """A finished cell with one value per side; the oracle's is the negative of what the validation says."""
    names = [n for n in ("a", "b", "c") if n != held]
    found = DomainScores(dict.fromkeys(names, inside), {held: outside}, {held: 1 - inside}, {held: 8})
    ratio = 0.0 if form == "dense" else 0.5
    return DomainCell("vit", held, seed, form, score, "", ratio, f"{held}{seed}{form}{score}", found=found, **more)


def study(*more: DomainCell) -> DomainStudy:
    cells = [
        cell("a", 0, 0.9, 0.8), cell("b", 0, 0.8, 0.6), cell("a", 1, 0.9, 0.7), cell("b", 1, 0.8, 0.7),
        cell("a", 0, 0.7, 0.6, "global", "l2", speed={1: 2.0}, shares={"params": 0.4}, epoch_s=1.0, train_s=9.0),
        cell("b", 0, 0.6, 0.2, "global", "l2", speed={1: 4.0}, shares={"params": 0.5}, epoch_s=3.0, train_s=5.0),
        cell("a", 1, 0.7, 0.5, "global", "l2"), cell("b", 1, 0.6, 0.5, "global", "l2"),
        *more,
    ]  # fmt: skip
    return DomainStudy("A study", ("a", "b"), tuple(cells), {"ratio_of": "params"})


def test_means_worst_and_drops_by_hand() -> None:
    dense, pruned = study().lines()
    assert (dense.line, pruned.line, pruned.seeds) == ("dense", "global l2", (0, 1))
    assert dense.mean is not None and pruned.mean is not None and pruned.worst is not None
    assert dense.mean.mean == pytest.approx((0.7 + 0.7) / 2) and dense.drop_outside is None
    assert pruned.by_domain["a"].mean == pytest.approx(0.55) and pruned.by_domain["b"].mean == pytest.approx(0.35)
    assert pruned.mean.mean == pytest.approx((0.4 + 0.5) / 2)
    assert pruned.worst.mean == pytest.approx((0.2 + 0.5) / 2)  # seed by seed
    assert pruned.drop_outside is not None and pruned.drop_inside is not None
    assert pruned.drop_outside.mean == pytest.approx((0.3 + 0.2) / 2) and pruned.drop_outside.n == 2
    assert pruned.drop_outside.se == pytest.approx(0.05)
    assert pruned.drop_inside.mean == pytest.approx(0.2)
    assert (pruned.speed, pruned.shares, pruned.epoch_s) == ({1: 3.0}, {"params": pytest.approx(0.45)}, 2.0)
    assert (pruned.train_s, pruned.dense_train_s) == (7.0, None)


def test_a_seed_that_lacks_a_domain_has_no_mean() -> None:
    found = study(cell("a", 2, 0.9, 0.1, "global", "l2"))
    pruned = found.lines()[1]
    assert pruned.mean is not None and pruned.mean.n == 2 and pruned.by_domain["a"].n == 3


def test_of_several_rates_validation_chooses() -> None:
    two = [cell("a", 0, 0.75, 0.1, "global", "l2", lr=0.1), cell("a", 0, 0.65, 0.9, "global", "l2", lr=0.2)]
    by = study(*two).lines()[1].by_domain["a"]
    assert by.mean == pytest.approx((0.1 + 0.5) / 2)  # the one that is best inside, though worst outside


def test_choices_by_validation_and_by_the_oracle() -> None:
    more = [cell(h, s, 0.65, 0.3, "global", "random") for h in "ab" for s in (0, 1)]
    (chosen,) = study(*more).selections()
    assert chosen.by_validation.mean == pytest.approx(((0.6 + 0.3) / 2 + (0.5 + 0.3) / 2) / 2)
    assert chosen.by_oracle is not None  # whose images here say the reverse
    assert chosen.by_oracle.mean == pytest.approx(((0.3 + 0.2) / 2 + (0.3 + 0.5) / 2) / 2)
    assert chosen.chosen == ("global l2", "global random")
    assert study().selections() == ()


def test_where_it_breaks_by_hand() -> None:
    """Drops at 25 %: a 0.002, b 0.03 and 0.005; at 50 % a 0.2, b 0.4 and 0.2; by l1, of one seed, a 0.015 at 25 %."""
    tops = {("a", 0): 0.798, ("b", 0): 0.57, ("a", 1): 0.698, ("b", 1): 0.695}
    quarter = [replace(cell(h, s, 0.89, top, "global", "l2"), ratio=0.25) for (h, s), top in tops.items()]
    single = replace(cell("a", 0, 0.9, 0.785, "global", "l1"), ratio=0.25)
    l2, l1 = breaks(study(*quarter, single))
    assert (l2.line, l1.line) == ("global l2", "global l1")
    # at 25 %: a loses 0.2 points; b 1.75 ± 1.25, not a point beyond its error; their mean 0.98 ± 0.63
    assert l2.by_domain == {"a": 0.5, "b": 0.5} and l2.outside == Edge(0.5, 0.5)
    assert l2.inside == Edge(0.5, 0.5)  # at 25 % it gains: 0.89 against 0.85
    assert l1.by_domain == {"a": 0.25} and l1.outside == l1.inside == Edge(None, None)  # a mean needs both domains
    strict = breaks(study(*quarter), limit=0.003)[0]
    assert list(strict.by_domain.items()) == [("b", 0.25), ("a", 0.5)]  # the first to break first
    assert strict.outside == Edge(0.25, 0.5) and strict.inside == Edge(0.5, 0.5)
    lines = break_table(study(*quarter, single))[1]
    assert lines[0] == ["vit", "global l2", "50%", "50%", "a at 50%, b at 50%"]
    assert lines[1][2:] == ["-", "-", "a at 25%"]
    fine = [replace(cell(h, s, 0.95, 0.9, "global", "l3"), ratio=0.25) for h in "ab" for s in (0, 1)]
    partly = [*fine, replace(cell("a", 0, 0.95, 0.9, "global", "l3"), ratio=0.75)]  # b is not measured there
    assert break_table(study(*partly))[1][0][1:] == ["global l3", "above 25%", "above 25%", "none"]
    assert breaks(DomainStudy("Empty", ("a",), ())) == () and break_table(study())[1][0][2] == "50%"


def test_pages_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_cell = DomainCell("vit", "a", 2, "global", "l2", "", 0.5, "k")
    failed = DomainCell("vit", "b", 2, "global", "l2", "worst", 0.5, "f", error="no luck")
    more = [cell(h, s, 0.65, 0.3, "global", "random") for h in "ab" for s in (0, 1)]
    found = study(*more, open_cell, failed)
    headings, lines = accuracy_table(found)
    assert headings[3:6] == ["a", "b", "mean"] and lines[0][3] == "75.00 ± 7.07"
    assert lines[1][headings.index("drop outside")] == "25.00 ± 5.00"
    assert cost_table(found)[1][0][3:5] == ["45.0%", "-"] and selection_table(found)[1][0][1] == "50%"
    page = domains_markdown(found, {"Top-1 in held-out domains of vit": "x.png"})
    assert "![Top-1 in held-out domains of vit](x.png)" in page
    assert "## Where it breaks" in page and "| vit | global l2 | 50% | 50% | a at 50%, b at 50% |" in page
    assert "- vit global l2 (worst) 0.5 without b seed 2 (f): no luck" in page
    rows = list(csv.DictReader(domains_csv(found).splitlines()))
    assert [r["top1"] for r in rows if r["key"] == "a0dense"] == ["0.90000", "0.90000", "0.80000", "0.10000"]
    assert {r["status"] for r in rows} == {"done", "open", "failed"}
    values = domains_json(found)
    assert values["lines"][1]["mean"]["mean"] == pytest.approx(0.45) and values["cells"][0]["outside"] == {"a": 0.8}
    for number, draw in enumerate((draw_domains, draw_drops)):
        draw(found, "vit", tmp_path / f"{number}.png")
        draw(DomainStudy("Empty", ("a",), (open_cell,)), "vit", tmp_path / f"{number}-empty.png")
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == 4 and all(p.read_bytes()[:4] == b"\x89PNG" for p in drawn)
    print_domains(found)
    assert "failed: vit global l2 (worst) 0.5 without b seed 2: no luck" in capsys.readouterr().out.replace("\n", " ")


def test_points_lost_as_a_picture_shows_them() -> None:
    control = [replace(cell(h, s, 0.91, 0.75, CONTROL, ""), ratio=0.0) for h in "ab" for s in (0, 1)]
    single = replace(cell("a", 0, 0.88, 0.79, "global", "l1"), ratio=0.25)  # b is not measured
    found = study(*control, single)
    drops = drops_of(found, "vit")
    assert {ratio: [line.line for line in lines] for ratio, lines in drops.items()} == {
        0.25: [CONTROL, "global l1"],
        0.5: [CONTROL, "global l2"],
    }
    half, quarter = drop_panels(found, "vit", "lost")[::-1]
    assert "global l2 25.0 ± 5.0" in half.alt and "global l1 not known, not known" in quarter.alt
    axes = half.figure.axes[0]
    marks = {line.get_label(): line for line in axes.get_lines()}
    assert axes.get_yticklabels()[1].get_text() == "global l2" and axes.yaxis_inverted()
    assert marks["mean of the unseen domains"].get_xdata()[1] == pytest.approx(25.0)
    assert sorted(marks["an unseen domain"].get_xdata()[2:]) == pytest.approx([20.0, 30.0])
    assert [t.get_text() for t in axes.texts] == ["b"]  # where most is lost; the control gains
    assert [t.get_text() for t in quarter.figure.axes[0].texts] == []  # a single domain needs no name
    assert drops_of(DomainStudy("Empty", ("a",), ()), "vit") == {}


def test_a_study_comes_back_from_its_table() -> None:
    broken = DomainCell("vit", "a", 2, "global", "l2", "", 0.5, "k", error="it broke")
    found = study(broken, DomainCell("vit", "b", 2, "global", "l2", "", 0.5, "open"))
    again = domains_from_json(json.loads(json.dumps(domains_json(found))))
    assert again == found and [c.status for c in again.cells[-2:]] == ["failed", "open"]


def test_a_report_of_a_study(tmp_path: Path) -> None:
    found = study(DomainCell("vit", "a", 2, "global", "l2", "", 0.5, "k", error="it broke"))
    about = {"ratio_of": "params", "data": {"spec": "DATA"}}
    for folder in ("none", "study"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dg.json").write_text("{}")
    with pytest.raises(StoreError, match="needs a finished cell, but .*none has none yet"):
        run_report([tmp_path / "none"], tmp_path / "none.html")
    table = domains_json(replace(found, about=about))
    (tmp_path / "study" / "table.json").write_text(json.dumps(table))
    done = run_report([tmp_path / "study"], tmp_path / "study.html")
    assert done.headline == "50% of the parameters gone, 25 points lost in unseen domains"  # 70 less (50 + 40) / 2
    page = (tmp_path / "study.html").read_text()
    assert "it broke" in page and "Unseen domains" in page and "0.9" not in done.headline
    for row in accuracy_table(found)[1]:
        assert all(f">{value}<" in page for value in row if value), row
    rows = list(csv.DictReader((done.files / "domains-1.csv").read_text().splitlines()))
    assert len(rows) == len(list(csv.DictReader(domains_csv(found).splitlines())))
    assert {p.stem for p in done.files.glob("domains-1-*.svg")} == {f"domains-1-{i}" for i in range(1, 6)}
    assert (done.files / "domains-drops-1-1.svg").is_file() and "global l2 25.0 ± 5.0" in page
    lost = [DomainCell("vit", "a", s, "global", "l2", "", 0.5, f"f{s}", error=f"error {s}") for s in range(10, 17)]
    to_do = [DomainCell("vit", "b", s, "global", "l2", "", 0.5, f"o{s}") for s in range(20, 29)]
    (tmp_path / "study" / "table.json").write_text(json.dumps(domains_json(replace(study(*lost, *to_do), about=about))))
    run_report([tmp_path / "study"], tmp_path / "long.html")
    long = (tmp_path / "long.html").read_text()
    assert "error 14" in long and "error 15" not in long and "study: 2 more failed" in long
    assert "seed 24 and 4 more still to come" in long and "seed 25" not in long
    (tmp_path / "study" / "table.json").write_text('{"title": 3}')
    with pytest.raises(StoreError, match=r"study"):
        run_report([tmp_path / "study"], tmp_path / "again.html")
