"""Commands that only look: `vitprune inspect`, `eval` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli import options as o
from vitprune.cli.run import print_json
from vitprune.errors import TargetError


def inspect(
    model: o.Model,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write it as a page, pictures beside it.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older page.")] = False,
    allow_module: o.AllowModule = None,
    json: o.Json = False,
) -> None:
    """What can be removed from MODEL, block by block, what it costs, and what must stay and why."""
    from vitprune.pipeline.inspect_run import inspect_model, print_inspection

    if html is not None:
        from vitprune.pipeline.report_run import check_out

        check_out(html, force=force)  # before the model is traced
    found, plan = inspect_model(model, allow_module)
    if html is not None:
        from vitprune.pipeline.inspect_page import write_inspection

        write_inspection(found, plan, html, force=force)
    if json:
        print_json(found.to_json())
    else:
        print_inspection(found)
        if html is not None:
            print(f"saved: {html}")


def evaluate(
    model: o.Model,
    data: o.Data,
    batch_size: o.BatchSize = 64,
    limit: o.Limit = None,
    val_fraction: o.ValFraction = 0.1,
    workers: o.Workers = 0,
    repeat_channels: o.RepeatChannels = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    allow_module: o.AllowModule = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Top-1 and top-5 of MODEL on the test images of DATA (validation images where there are none)."""
    from vitprune.pipeline.eval_run import run_eval
    from vitprune.pipeline.setup import DataSettings
    from vitprune.progress import make_progress

    reading = DataSettings(data, limit, val_fraction, workers, repeat_channels)
    found = run_eval(
        model,
        reading,
        batch_size=batch_size,
        seed=seed,
        device=device,
        allow_module=allow_module,
        progress=make_progress(quiet),
    )
    if json:
        print_json(found)
    else:
        low, high = found["ci95"]
        print(
            f"top-1 {100 * found['top1']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}), "
            f"top-5 {100 * found['top5']:.2f} %, {found['images']} {found['split']} images"
        )


def bench(
    model: o.Model,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="as set")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 30,
    device: o.Device = "auto",
    allow_module: o.AllowModule = None,
    json: o.Json = False,
) -> None:
    """Latency (median, p10, p90), peak memory and MACs of MODEL; of a saved folder also of its dense twin, in turns."""
    from vitprune.pipeline.bench_run import print_bench, run_bench

    try:
        sizes = [int(n) for n in o.names(batch)]
    except ValueError as error:
        raise TargetError(f"--batch must be numbers joined by commas, but got {batch!r}") from error
    rows = run_bench(
        model, batch_sizes=sizes, threads=threads, repeats=repeats, device=device, allow_module=allow_module
    )
    if json:
        print_json([row.to_json() for row in rows])
    else:
        print_bench(rows)
