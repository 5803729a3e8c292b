"""Means, spreads and differences of a comparison, against numbers worked out otherwise."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vitprune.report import (
    CellResult,
    Comparison,
    FrontPoint,
    Hits,
    Row,
    Time,
    comparison_csv,
    comparison_json,
    comparison_markdown,
    draw_comparison,
    print_comparison,
)
from vitprune.report.paired import by_image, by_seed, mcnemar, spread


def hits(text: str, images: str = "a") -> Hits:
    """Of "1101...", an image each."""
    bits = np.array([int(c) for c in text], dtype=np.uint8)
    return Hits(images, len(bits), np.packbits(bits).tobytes())


def test_hits_as_bits_and_json() -> None:
    found = hits("1011000111")
    assert found.right == bytes([0b10110001, 0b11000000])
    assert found.array().tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert Hits.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_spread_by_hand() -> None:
    assert spread([0.5]).sd is None
    found = spread([0.90, 0.92, 0.97])
    assert (found.n, found.mean) == (3, pytest.approx(0.93))
    assert found.sd == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))


def test_differences_by_seed_pair_what_both_have() -> None:
    ours, theirs = {0: 0.91, 1: 0.90, 2: 0.93, 7: 0.1}, {2: 0.91, 1: 0.91, 0: 0.88, 5: 0.99}
    found = by_seed(ours, theirs)
    assert found is not None and found.n == 3
    peer = stats.ttest_rel([0.91, 0.90, 0.93], [0.88, 0.91, 0.91])
    ends = peer.confidence_interval(0.95)
    assert found.mean == pytest.approx((0.03 - 0.01 + 0.02) / 3)
    assert found.se == pytest.approx(found.mean / peer.statistic)
    assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    one = by_seed({3: 0.5}, {3: 0.25, 4: 0.9})
    assert one is not None and (one.n, one.mean, one.se, one.low, one.high) == (1, 0.25, None, None, None)
    assert by_seed({0: 0.5}, {1: 0.5}) is None


def test_one_pair_by_images_is_the_published_interval() -> None:
    """Agresti and Min: half an image more in each of the four cells, then Wald."""
    a, b = hits("1" * 60 + "1" * 12 + "0" * 5 + "0" * 23), hits("1" * 60 + "0" * 12 + "1" * 5 + "0" * 23)
    found = by_image([(a, b)])
    won, lost, n = 12.5, 5.5, 102
    middle = (won - lost) / n
    se = math.sqrt((won + lost) - (won - lost) ** 2 / n) / n
    assert found is not None and found.mean == pytest.approx(0.07) and found.se == pytest.approx(se)
    assert found.low == pytest.approx(middle - 1.96 * se, abs=1e-5)
    assert found.high == pytest.approx(middle + 1.96 * se, abs=1e-5)
    exact = 2 * sum(math.comb(17, k) for k in range(12, 18)) / 2**17
    assert found.p == pytest.approx(exact) == mcnemar(b, a)
    assert mcnemar(a, a) == 1.0


def test_several_pairs_by_images() -> None:
    rng = np.random.default_rng(0)
    bits = [["".join(map(str, rng.integers(0, 2, 40))) for _ in range(2)] for _ in range(3)]
    same = by_image([(hits(a), hits(b)) for a, b in bits])
    values = np.array([[int(x) - int(y) for x, y in zip(a, b, strict=True)] for a, b in bits])
    means = np.concatenate([values.mean(axis=0), [1, -1]])  # the image more, of half a weight twice, moves no sum
    assert same is not None and same.mean == pytest.approx(values.mean()) and same.p is None
    squares = (values.mean(axis=0) ** 2).sum() + 1
    middle = means.sum() / 42
    assert same.se == pytest.approx(math.sqrt((squares / 42 - middle**2) / 42))
    other = by_image([(hits(a, str(i)), hits(b, str(i))) for i, (a, b) in enumerate(bits)])
    parts = [by_image([(hits(a), hits(b))]) for a, b in bits]
    assert other is not None and other.mean == pytest.approx(values.mean())
    assert other.se == pytest.approx(math.sqrt(sum((p.se or 0) ** 2 for p in parts if p)) / 3)
    assert by_image([]) is None
    assert by_image([(hits("10", "a"), hits("10", "b"))]) is None
    assert by_image([(hits("10"), hits("100"))]) is None


DENSE = Row("dense", 100, 1000, 0.9, (0.88, 0.92), 8, 2.0, 30.0)


def cell(method: str, asked: str, seed: int, top1: float | None, bits: str = "", ms: float = 1.0) -> CellResult:
    if top1 is None:
        return CellResult(method, asked, seed, "f" * 12, FrontPoint("f", asked, error="TargetError: out of | reach"))
    rows = (DENSE, Row("pruned", 40, 500, top1, (top1 - 0.1, top1 + 0.1), 8, ms, 10.0))
    point = FrontPoint("c" * 12, asked, rows, Time(ms, 2.0, ms / 2, 1))
    return CellResult(method, asked, seed, "c" * 12, point, hits(bits) if bits else None, 1.0 + seed)


def made() -> Comparison:
    cells = (
        cell("a", "macs=0.5", 0, 0.875, "11111110"),
        cell("b", "macs=0.5", 0, 0.75, "11111100"),
        cell("c", "macs=0.5", 0, 0.5, "11110000"),
        cell("a", "macs=0.5", 1, 0.625, "11111000", ms=1.2),
        cell("b", "macs=0.5", 1, 0.75, "01111110", ms=9.0),
        cell("c", "macs=0.5", 1, None),
        cell("a", "macs=0.25", 0, 0.5),
        cell("b", "macs=0.25", 0, None),
        CellResult("c", "macs=0.25", 0, "e" * 12, FrontPoint("e", "macs=0.25")),
        cell("b", "macs=0.25", 1, 0.25),
    )
    return Comparison("model, data", ("a", "b", "c"), ("macs=0.5", "macs=0.25"), "a", cells, {"epochs": 3})


def test_tables_hold_what_numpy_gives() -> None:
    found = made()
    by = {(s.method, s.asked): s for s in found.summaries()}
    assert [*by][:4] == [("a", "macs=0.5"), ("b", "macs=0.5"), ("c", "macs=0.5"), ("a", "macs=0.25")]
    first = by["a", "macs=0.5"]
    assert (
        first.top1 is not None
        and first.top1.mean == 0.75
        and first.top1.sd == pytest.approx(np.std([0.875, 0.625], ddof=1))
    )
    assert first.seeds == (0, 1) and first.shares == {"macs": 0.5, "params": 0.4, "latency": pytest.approx(0.55)}
    assert first.minutes == 1.5
    assert by["c", "macs=0.5"].failed == 1 and by["c", "macs=0.5"].seeds == (0,)
    assert by["c", "macs=0.25"].top1 is None and by["c", "macs=0.25"].failed == 0
    differences = {(d.method, d.asked): d for d in found.differences()}
    # at a quarter b has only seed 1 and a only seed 0, so there is no difference
    assert set(differences) == {("b", "macs=0.5"), ("c", "macs=0.5")}
    b, c = differences["b", "macs=0.5"], differences["c", "macs=0.5"]
    assert b.seeds == (0, 1) and b.by_seed.mean == 0.0 and b.by_seed.se == pytest.approx(0.125)
    assert b.by_image is not None and b.by_image.p is None
    assert c.seeds == (0,) and c.by_seed.mean == -0.375 and c.by_seed.low is None
    assert c.by_image is not None and c.by_image.p == 0.25
    assert found.metric == "macs" and len(found.failed) == 2 and len(found.finished) == 7


def test_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = made()
    page = comparison_markdown(found, "compare.png")
    assert "of 8 images" in page and "![Top-1 against cost](compare.png)" in page
    assert "| macs=0.5 | a | 75.00 ± 17.68 | 2 | 50.0% | 40.0% | 55.0% | 1.5 |  |" in page
    assert "|  | dense | 90.00 |" in page
    assert "| macs=0.5 | c | -37.50 | - | - | 1 | " in page and "| 0.25 |" in page
    assert "- c macs=0.5 seed 1 (ffffffffffff): TargetError: out of | reach" in page
    lines = list(csv.DictReader(comparison_csv(found).splitlines()))
    assert [line["status"] for line in lines] == [*["done"] * 5, "failed", "done", "failed", "open", "done"]
    assert lines[0]["top1"] == "0.87500" and lines[0]["macs_share"] == "0.50000" and lines[8]["top1"] == ""
    value = json.loads(json.dumps(comparison_json(found)))
    assert value["epochs"] == 3 and value["table"][0]["top1"]["mean"] == 0.75
    assert value["differences"][1]["by_image"]["p"] == 0.25 and value["cells"][5]["error"].startswith("TargetError")
    print_comparison(found)
    shown = capsys.readouterr().out
    assert "75.00 ± 17.68" in shown and "failed: b macs=0.25 seed 0: TargetError" in shown
    nothing = Comparison("none", ("a",), ("latency=0.5x",), "a", (cell("a", "latency=0.5x", 0, None),))
    for name, drawn in (("some", found), ("none", nothing)):
        draw_comparison(drawn, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert comparison_markdown(nothing).startswith("# none\n\nFailed:")
