"""`vitprune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune.cli import options as o
from vitprune.cli.prune import prune
from vitprune.cli.request import request, with_options_of
from vitprune.cli.run import command_line, print_json, some_failed


@with_options_of(prune, without=("target", "mask_weight", "rate"))
def sweep(
    model: o.Model,
    data: o.Data,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC=VALUE,...", help="A model for each, such as macs=0.75,macs=0.5.", show_default=False
        ),
    ] = None,
    mask_weights: Annotated[
        str | None,
        typer.Option(metavar="W,...", help="masks: a model for each weight of the cost.", show_default=False),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(metavar="RATE,...", help="vtp: a model for each rate.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the sweep. [default: runs/NAME-sweep]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of a sweep, finished models and all.")] = (
        False
    ),
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on within points that were stopped, or start them over.")
    ] = True,
    **rest: Any,
) -> None:
    """Prune MODEL to several targets, or with several weights of the cost, and draw accuracy against cost."""
    from vitprune.pipeline.sweep_run import SweepError, points_of, run_sweep
    from vitprune.report import front_json, print_front

    points = points_of(o.names(targets or ""), o.numbers("--mask-weights", mask_weights), o.numbers("--rates", rates))
    run = request(model=model, data=data, target=None, mask_weight=None, rate=None, **rest)
    place = out or o.default_out(model, "sweep")

    def upkeep(folder: Path) -> Any:
        logs = rest["log_dir"]
        return o.upkeep(rest["checkpoint_every"], rest["tracker"], None if logs is None else logs / folder.name, folder)

    front = run_sweep(
        model,
        run.data,
        run.settings,
        points,
        run.training,
        place,
        force=force,
        resume=resume,
        upkeep=upkeep,
        command=command_line(),
        **run.how,
    )
    if rest["json"]:
        print_json({"out": str(place), **front_json(front)})
    else:
        print_front(front)
        print(f"saved: {place}  (front.md, front.csv, front.json, front.png, {len(front.finished)} models in points/)")
    if front.failed:
        raise SweepError(some_failed("points", [p.asked for p in front.failed], len(points), place / "front.md"))
