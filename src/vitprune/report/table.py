"""The table of one model's stages: dense, pruned, fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitprune.report.terminal import print_table


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of a model at one stage; None: not measured."""

    name: str  # "dense", "pruned", "refitted", "fine-tuned"
    params: int
    macs: int  # multiply-accumulates per image (FLOPs = 2 x MACs)
    top1: float | None = None  # share in 0..1
    ci95: tuple[float, float] | None = None  # confidence interval of top1
    images: int | None = None  # that top1 was measured on
    latency_ms: float | None = None  # median at batch 1
    latency32_ms: float | None = None  # median of a batch of 32
    bytes: int | None = None  # of the weights' file
    memory_mib: float | None = None  # peak of weights and forward pass together, of one image

    def to_json(self) -> dict[str, Any]:
        """The fields that were measured, as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v is not None}


HEADINGS = {
    "name": "model",
    "top1": "top-1 %",
    "params": "parameters",
    "macs": "MACs",
    "latency_ms": "ms, batch 1",
    "latency32_ms": "ms, batch 32",
    "memory_mib": "peak MiB",
    "bytes": "weights MB",
}


def format_row(row: Row, first: Row | None = None) -> dict[str, str]:
    """The row as text, by the keys of HEADINGS; counts are followed by their share of `first`'s."""
    base = first or row

    def count(value: float | None, dense: float | None, text: str) -> str:
        if value is None:
            return "-"
        return f"{text} ({value / dense:.0%})" if dense and row is not base else text

    interval = "" if row.ci95 is None else f" ± {(row.ci95[1] - row.ci95[0]) * 50:.1f}"
    return {
        "name": row.name,
        "top1": "-" if row.top1 is None else f"{row.top1 * 100:.2f}{interval}",
        "params": count(row.params, base.params, f"{row.params / 1e6:.3f} M"),
        "macs": count(row.macs, base.macs, f"{row.macs / 1e6:.2f} M"),
        "latency_ms": count(row.latency_ms, base.latency_ms, f"{row.latency_ms or 0:.2f}"),
        "latency32_ms": count(row.latency32_ms, base.latency32_ms, f"{row.latency32_ms or 0:.1f}"),
        "memory_mib": count(row.memory_mib, base.memory_mib, f"{row.memory_mib or 0:.1f}"),
        "bytes": count(row.bytes, base.bytes, f"{(row.bytes or 0) / 1e6:.2f}"),
    }


def print_rows(rows: Sequence[Row], title: str = "") -> None:
    """Prints the rows to standard output; a column that no row has is left out."""
    texts = [format_row(row, rows[0]) for row in rows]
    columns = [key for key in HEADINGS if any(text[key] != "-" for text in texts)]
    print_table([HEADINGS[key] for key in columns], [[text[key] for key in columns] for text in texts], title)
