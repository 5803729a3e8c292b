"""What an export gave, on standard output."""

from __future__ import annotations

from vitprune.pipeline.export_settings import ExportResult
from vitprune.report.terminal import print_table

HEADINGS = ("model", "by", "batch", "median ms", "p10", "p90", "x eager", "x dense eager")


def print_export(result: ExportResult) -> None:
    """The comparison in lines, and the latencies as a table; "x" is the speed-up over PyTorch eager."""
    parity = result.parity
    print(f"{result.format} {result.precision}, {result.bytes / 1e6:.2f} MB, on {parity.images} {result.compared_on}:")
    print(
        f"  largest difference of a score {parity.largest:.1e} of the largest score, "
        f"same class {100 * parity.agreement:.2f} %"
    )
    if parity.top1 is not None and parity.top1_model is not None:
        print(f"  top-1 {100 * parity.top1:.2f} %, of the model in PyTorch {100 * parity.top1_model:.2f} %")
    if result.speed:
        eager = {(r.model, r.batch): r.median_ms for r in result.speed if r.by == "eager"}
        lines = []
        for r in result.speed:
            numbers = [f"{ms:.2f}" for ms in (r.median_ms, r.p10_ms, r.p90_ms)]
            ratios = [eager.get((name, r.batch)) for name in (r.model, "dense")]
            shown = ["-" if ms is None else f"{ms / r.median_ms:.2f}" for ms in ratios]
            lines.append([r.model, r.by, str(r.batch), *numbers, *shown])
        print_table(HEADINGS, lines, f"CPU, {result.speed[0].threads} thread(s), in turns", left=(0, 1))
    for note in result.notes:
        print(f"note: {note}")
    print(f"saved: {result.out / result.file if result.file else result.out}")
