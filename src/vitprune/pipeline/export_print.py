"""What an export gave, on standard output."""

from __future__ import annotations

from vitprune.pipeline.export_settings import ExportResult


def print_export(result: ExportResult) -> None:
    """The comparison in lines, and the latencies as a table; "x" is the speed-up over PyTorch eager."""
    from rich.console import Console
    from rich.table import Table

    parity = result.parity
    print(f"{result.format} {result.precision}, {result.bytes / 1e6:.2f} MB, on {parity.images} {result.compared_on}:")
    print(
        f"  largest difference of a score {parity.largest:.1e} of the largest score, "
        f"same class {100 * parity.agreement:.2f} %"
    )
    if parity.top1 is not None and parity.top1_model is not None:
        print(f"  top-1 {100 * parity.top1:.2f} %, of the model in PyTorch {100 * parity.top1_model:.2f} %")
    if result.speed:
        table = Table(title=f"CPU, {result.speed[0].threads} thread(s), in turns", title_justify="left")
        for heading in ("model", "by"):
            table.add_column(heading, no_wrap=True)
        for heading in ("batch", "median ms", "p10", "p90", "x eager", "x dense eager"):
            table.add_column(heading, justify="right", no_wrap=True)
        eager = {(r.model, r.batch): r.median_ms for r in result.speed if r.by == "eager"}
        for r in result.speed:
            numbers = [f"{ms:.2f}" for ms in (r.median_ms, r.p10_ms, r.p90_ms)]
            ratios = [eager.get((name, r.batch)) for name in (r.model, "dense")]
            shown = ["-" if ms is None else f"{ms / r.median_ms:.2f}" for ms in ratios]
            table.add_row(r.model, r.by, str(r.batch), *numbers, *shown)
        console = Console()
        Console(width=max(console.width, 100)).print(table)
    for note in result.notes:
        print(f"note: {note}")
    print(f"saved: {result.out / result.file if result.file else result.out}")
