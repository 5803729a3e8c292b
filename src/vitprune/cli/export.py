"""`vitprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli import options as o
from vitprune.cli.run import print_json
from vitprune.errors import TargetError


def export(
    model: o.Model,
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, pt2, openvino, executorch or hf.")
    ] = "onnx",
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="int8 (static: ranges from images of DATA) or int8-dynamic.", show_default="float32"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images to compare on, as of prune; int8 needs them.",
            show_default="random images",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Validation images to compare on; 0: all.")] = 1000,
    calibration: Annotated[int, typer.Option(min=1, help="Training images for the ranges of static int8.")] = 256,
    max_drop: Annotated[float, typer.Option(help="Points of top-1 that int8 may lose on the validation images.")] = 1.0,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per call.", show_default="any number; executorch: 1")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time it beside PyTorch.")] = True,
    latency_batch: Annotated[str, typer.Option(help="Batch sizes that are timed.")] = "1,8",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Time torch.compile too.")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="as set")] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="hf: its name on the hub.", show_default=False)
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="hf: licence of the weights, such as apache-2.0.", show_default="the base model's"
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="hf: the dense model on the hub.", show_default=False)
    ] = None,
    val_fraction: o.ValFraction = 0.1,
    workers: o.Workers = 0,
    repeat_channels: o.RepeatChannels = False,
    seed: o.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write. [default: runs/NAME-FORMAT]", show_default=False),
    ] = None,
    force: o.Force = False,
    allow_module: o.AllowModule = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write MODEL for another runtime, compare it with PyTorch on real images there, and time both; or to share it."""
    try:
        sizes = tuple(int(n) for n in o.names(latency_batch)) if latency else ()
    except ValueError as error:
        raise TargetError(f"--latency-batch must be numbers joined by commas, but got {latency_batch!r}") from error
    from vitprune.pipeline.export_print import print_export
    from vitprune.pipeline.export_run import run_export
    from vitprune.pipeline.export_settings import Card, ExportSettings
    from vitprune.pipeline.setup import DataSettings
    from vitprune.progress import make_progress

    settings = ExportSettings(format, quantize, batch, images, calibration, max_drop, sizes, compile, threads)
    reading = None
    if data is not None:
        reading = DataSettings(data, None, val_fraction, workers, repeat_channels)
    given = any(value is not None for value in (repo, license, base_model))
    found = run_export(
        model,
        reading,
        settings,
        out or o.default_out(model, format if quantize is None else f"{format}-{quantize}"),
        card=Card(repo, license, base_model) if given else None,
        force=force,
        seed=seed,
        allow_module=allow_module,
        progress=make_progress(quiet),
    )
    if json:
        print_json(found.to_json())
    else:
        print_export(found)
