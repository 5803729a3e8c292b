"""`vitprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune.cli import options as o
from vitprune.cli.config import read_config
from vitprune.cli.run import command_line, print_json, some_failed


def compare(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="A TOML file: model, data, seeds, targets; options of prune in the tables common and methods.NAME.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the comparison. [default: runs/NAME-compare]", show_default=False),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder of a comparison of another model or other data.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on within cells that were stopped, or start them over.")
    ] = True,
    checkpoint_every: o.CheckpointEvery = 0,
    tracker: o.Tracker = None,
    log_dir: o.LogDir = None,
    device: o.Device = "auto",
    allow_module: o.AllowModule = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Prune by several methods to several targets with several seeds, all with the same training, and compare."""
    asked = read_config(config, device=device, allow_module=allow_module, quiet=quiet)
    from vitprune.pipeline.compare_run import CellsFailed, run_compare
    from vitprune.report import comparison_json, print_comparison

    place = out or o.default_out(asked.model, "compare")

    upkeep = o.cell_upkeep(checkpoint_every, tracker, log_dir, place)
    found = run_compare(
        asked.model,
        asked.data,
        asked.methods,
        asked.targets,
        asked.seeds,
        asked.training,
        place,
        baseline=asked.baseline,
        config=asked.text,
        force=force,
        resume=resume,
        upkeep=upkeep,
        command=command_line(),
        **asked.how,
    )
    if json:
        print_json({"out": str(place), **comparison_json(found)})
    else:
        print_comparison(found)
        print(f"saved: {place}  (table.md, table.csv, table.json, compare.png, {len(found.finished)} models in runs/)")
    if found.failed:
        raise CellsFailed(some_failed("cells", [c.name for c in found.failed], len(found.cells), place / "table.md"))
