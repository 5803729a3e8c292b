"""`vitprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli import options as o
from vitprune.cli.run import command_line, print_json


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders that prune, sweep, search, compare, finetune, train or demo wrote; several share the fronts.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page; pictures and tables lie beside it, in FILE's name_files.")
    ] = Path("report.html"),
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Where the test images are now.", show_default="as the run had them"
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Show images whose prediction changed.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an older page, and the files beside it.")] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """One page of what runs asked for and got: tables, fronts, widths, curves, classes, images, settings."""
    from vitprune.pipeline.report_run import run_report
    from vitprune.progress import make_progress

    done = run_report(
        runs,
        out,
        data=data,
        images=images,
        force=force,
        command=command_line(),
        progress=make_progress(quiet),
    )
    if json:
        models = [m.name for run in done.runs for m in run.models]
        left = [{"what": what, "why": why} for what, why in done.missing]
        about = {"out": str(done.out), "files": str(done.files), "headline": done.headline}
        print_json({**about, "models": models, "missing": left})
        return
    print(done.headline)
    for what, why in done.missing:
        print(f"not on the page: {what}: {why}")
    print(f"saved: {done.out}  (pictures and tables in {done.files})")
