"""`vitprune dg`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune.cli import options as o
from vitprune.cli.run import print_json, some_failed


def dg(
    models: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL,...", help="As for prune; several joined by commas, or repeated.", show_default=False
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="A folder DOMAIN/CLASS/*.jpg, rotated-fashion-mnist[-sample][:15-75|30-60], or "
            "fashion-mnist-domains[-sample][:TRANSFORM[=STRENGTH],...].",
            show_default=False,
        ),
    ],
    held_out: Annotated[
        str,
        typer.Option(metavar="DOMAIN,...", help="Held out one after the other; A+B together; all: the set's protocol."),
    ] = "all",
    ratios: Annotated[str, typer.Option(metavar="SHARE,...", help="Shares that are removed.")] = "0.5,0.75,0.95",
    ratio_of: Annotated[str, typer.Option(help="Of what: params, macs or units.")] = "params",
    scores: Annotated[
        str, typer.Option(metavar="SCORE,...", help="hessian, or any --method of prune that scores.")
    ] = "hessian,taylor,magnitude-l1,magnitude-l2,lamp,random",
    forms: Annotated[
        str, typer.Option(metavar="FORM,...", help="Of grouped-global, isomorphic, refit, default, blended, masks.")
    ] = "grouped-global",
    over: Annotated[
        str, typer.Option(metavar="WAY,...", help="Scores over domains: of pooled, mean, worst, shared, steady.")
    ] = "pooled",
    seeds: Annotated[str, typer.Option(metavar="SEED,...", help="Of everything random, splits included.")] = "0,1,2",
    method: Annotated[
        str | None,
        typer.Option(help="masks, default, ...: a form beside those of --forms.", show_default=False),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="The dense models begin with their library's initial weights.")
    ] = False,
    dense_epochs: Annotated[int, typer.Option(min=1, help="Epochs of the dense models.")] = 10,
    dense_lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the dense models. [default: 2e-4, from scratch 1e-3]")
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning after pruning; 0 leaves it out.")] = 10,
    lr: o.Lr = 2e-4,
    rates: Annotated[
        str | None,
        typer.Option(metavar="LR,...", help="Learning rates to choose from, by source domains.", show_default=False),
    ] = None,
    batch_size: o.BatchSize = 64,
    weight_decay: o.WeightDecay = 0.05,
    warmup: o.Warmup = 1.0,
    label_smoothing: o.Smoothing = 0.0,
    optimizer: o.Optimizer = "adamw",
    amp: o.Amp = "auto",
    set_: o.Settings = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Fine-tune with the dense model as teacher.")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Fine-tune the dense models too, not pruned.")
    ] = True,
    augment: Annotated[str, typer.Option(help="auto, domainbed or none.")] = "auto",
    round_to: Annotated[int, typer.Option(min=1, help="Sizes are multiples of it.")] = 8,
    calibration: Annotated[int, typer.Option(min=1, help="Images of source domains for scores and refit.")] = 512,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many images per domain.", show_default=False)
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.9, help="Share of every domain to validate on.")
    ] = 0.2,
    workers: o.Workers = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the study. [default: runs/DATA-dg]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of a study of other data.")] = False,
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
    """Leave domains out, prune the models that know the others, and measure accuracy in the domains left out."""
    from vitprune.pipeline.dg_run import StudyFailed, run_dg
    from vitprune.pipeline.dg_settings import StudySettings
    from vitprune.pipeline.setup import DomainSettings
    from vitprune.progress import make_progress
    from vitprune.report import domains_json, print_domains

    common: dict[str, Any] = {"batch_size": batch_size, "weight_decay": weight_decay, "warmup_epochs": warmup}
    common |= {"label_smoothing": label_smoothing, "optimizer": optimizer, "amp": amp}
    rate = (1e-3 if from_scratch else 2e-4) if dense_lr is None else dense_lr
    wanted = o.names(forms) + (() if method is None else (method,))
    settings = StudySettings(
        o.numbers("--ratios", ratios),
        ratio_of,  # type: ignore[arg-type]
        o.names(scores),
        tuple(dict.fromkeys(wanted)),
        o.names(over),
        o.whole_numbers("--seeds", seeds),
        o.train_settings(dense_epochs, set_ or (), lr=rate, **common),
        o.train_settings(epochs, set_ or (), lr=lr, **common),
        o.numbers("--rates", rates),
        from_scratch,
        distill,
        round_to,
        calibration,
        control,
    )
    given = tuple(name for text in models for name in o.names(text))
    place = out or o.default_out(data, "dg")

    upkeep = o.cell_upkeep(checkpoint_every, tracker, log_dir, place)
    found = run_dg(
        given,
        DomainSettings(data, limit, val_fraction, workers, augment=augment),
        settings,
        place,
        held_out=held_out,
        device=device,
        allow_module=allow_module,
        force=force,
        resume=resume,
        upkeep=upkeep,
        progress=make_progress(quiet),
    )
    if json:
        print_json({"out": str(place), **domains_json(found)})
    else:
        print_domains(found)
        print(f"saved: {place}  (table.md, table.csv, table.json, curves-*.png, {len(found.finished)} models in runs/)")
    if found.failed:
        raise StudyFailed(some_failed("cells", [c.name for c in found.failed], len(found.cells), place / "table.md"))
