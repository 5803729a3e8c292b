import numpy as np
import pytest

from toys import toy_graph
from vitprune.allocate import allocate
from vitprune.errors import StoreError
from vitprune.report import Row, draw_widths, format_row, print_rows, width_rows


def plan():
    graph = toy_graph()
    rng = np.random.default_rng(0)
    return allocate(graph, {g.name: rng.random((g.lanes, g.size)) for g in graph.groups}, "macs=0.5", scope="global")


def test_width_rows_follow_the_plan():
    rows = width_rows(plan())
    assert [r.group for r in rows] == list(toy_graph().sizes())
    mlp = [r for r in rows if r.kind == "mlp"]
    assert [(r.position, r.dense) for r in mlp] == [(0, 64), (1, 64)]
    assert {r.group: r.kept for r in rows} == plan().sizes()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture_is_written(tmp_path, suffix):
    path = tmp_path / f"widths.{suffix}"
    draw_widths(width_rows(plan()), path, "toy")
    assert path.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[suffix]
    assert path.stat().st_size > 5000


def test_picture_into_nowhere_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"cannot write .*none/widths.png"):
        draw_widths(width_rows(plan()), tmp_path / "none" / "widths.png")


ROWS = (
    Row("dense", 1_000_000, 40_000_000, 0.925, (0.915, 0.935), 1000, 2.0, 60.0, 4_000_000),
    Row("pruned", 500_000, 20_000_000, 0.1, latency_ms=1.5),
)


def test_rows_as_text():
    assert format_row(ROWS[0], ROWS[0])["top1"] == "92.50 ± 1.0"
    assert format_row(ROWS[0])["params"] == "1.000 M"
    text = format_row(ROWS[1], ROWS[0])
    assert text == {
        "name": "pruned",
        "top1": "10.00",
        "params": "0.500 M (50%)",
        "macs": "20.00 M (50%)",
        "latency_ms": "1.50 (75%)",
        "latency32_ms": "-",
        "memory_mib": "-",
        "bytes": "-",
    }
    assert ROWS[1].to_json() == {
        "name": "pruned",
        "params": 500_000,
        "macs": 20_000_000,
        "top1": 0.1,
        "latency_ms": 1.5,
    }


def test_table_is_printed_whole(capsys):
    print_rows(ROWS, "a title")
    out = capsys.readouterr().out
    assert "a title" in out
    assert "500_000" not in out
    for text in ("92.50 ± 1.0", "0.500 M (50%)", "1.50 (75%)", "weights MB", "60.0"):
        assert text in out
    print_rows(ROWS[1:])
    assert "weights MB" not in capsys.readouterr().out
