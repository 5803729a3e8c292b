"""`vitprune prune` and `vitprune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitprune.cli import options as o
from vitprune.cli.request import request
from vitprune.cli.run import command_line, print_json
from vitprune.processes import is_main

Minimum = Annotated[int | None, typer.Option(min=1, show_default=False)]


def prune(
    model: o.Model,
    data: o.Data,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="macs=0.5, params=0.4, latency=0.5x (shares), macs=4.6G, params=12M, latency=12ms (absolute).",
            show_default="macs=0.5; none with ratios",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="auto (output-error with calibration images, else magnitude-l2), magnitude-l2, magnitude-l1, lamp, "
            "taylor, fisher, hessian, variance, energy, obs, refit-error, output-error, random; masks, vtp: trained on "
            "DATA."
        ),
    ] = "auto",
    scope: Annotated[
        str,
        typer.Option(
            help="auto (per-cost for output-error, else local), local: the same share everywhere; isomorphic: units "
            "compete within their kind; global: one threshold; per-cost: one threshold on what is lost per MAC."
        ),
    ] = "auto",
    kinds: Annotated[
        str | None,
        typer.Option(help="Of: mlp, heads, qk, v, residual, block.", show_default="mlp,qk,v and those with a ratio"),
    ] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of it.")] = 8,
    min_heads: Minimum = None,
    min_qk: Minimum = None,
    min_v: Minimum = None,
    min_mlp: Minimum = None,
    min_residual: Minimum = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Groups that keep their size; may be repeated.")
    ] = None,
    ratio: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=SHARE,...", help="Fixed share that stays of a kind; may be repeated."),
    ] = None,
    latency_batch: Annotated[int, typer.Option(min=1, help="Images per forward pass that a latency is of.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads that a latency is measured with.", show_default="as set")
    ] = None,
    ratios_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Fixed shares by patterns of group names, JSON or TOML.", show_default=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to the target, each scored and refitted anew.")] = 1,
    reduction: Annotated[str, typer.Option(help="A unit's slices to one number: default, sum, mean, max.")] = "default",
    normalise: Annotated[
        str, typer.Option(help="A group's scores before they are compared: none, mean, max, sum, standard.")
    ] = "none",
    rotate: Annotated[
        bool, typer.Option("--rotate/--no-rotate", help="Change the basis of heads so that their last dims do least.")
    ] = True,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Fit the layers behind removed units again, in closed form.")
    ] = True,
    calibration: Annotated[
        int, typer.Option(min=0, help="Training images, for scores, rotation and refit; 0 leaves these out.")
    ] = 512,
    blend: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of these that are blended with coloured noise, where the model will meet other images.",
        ),
    ] = 0.0,
    mask_epochs: Annotated[int, typer.Option(min=1, help="masks, vtp: epochs of training under masks.")] = 10,
    mask_warmup: Annotated[int, typer.Option(min=0, help="masks, vtp: epochs before the masks.")] = 0,
    mask_patience: Annotated[
        int,
        typer.Option(min=0, help="masks, vtp: epochs without a better top-1 or a lower cost that end it; 0: never."),
    ] = 0,
    mask_lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of masks.", show_default="0.01, from scores 0.003; vtp: the weights'"),
    ] = None,
    search_lr: Annotated[float, typer.Option(help="masks, vtp: learning rate of the weights under masks.")] = 1e-4,
    mask_weight: Annotated[
        float | None,
        typer.Option(help="masks: weight of the cost (1: dense) in the loss, instead of a target.", show_default=False),
    ] = None,
    mask_cost: Annotated[
        str | None,
        typer.Option(help="The cost that --mask-weight is of: macs, params or latency.", show_default="macs"),
    ] = None,
    sharing: Annotated[
        str, typer.Option(help="Masks of the residual width: residual, independent, blocks, inputs.")
    ] = "residual",
    freeze: Annotated[str | None, typer.Option(help="Kinds without masks.", show_default=False)] = None,
    mask_start: Annotated[
        str,
        typer.Option(
            help="masks, vtp: begin with the model as it is (dense), rotated, or cut by scores and refitted (score)."
        ),
    ] = "auto",
    relaxation: Annotated[str, typer.Option(help="masks: straight-through, hard-concrete or top-k.")] = (
        "straight-through"
    ),
    rate: Annotated[
        float | None, typer.Option(help="vtp: share of the gates to close, instead of a target.", show_default=False)
    ] = None,
    l1: Annotated[float, typer.Option(help="vtp: weight of the penalty on the gates.")] = 1e-4,
    closings: Annotated[int, typer.Option(min=1, help="vtp: thresholds, spread over the training under gates.")] = 1,
    epochs: o.Epochs = 10,
    lr: o.Lr = 2e-4,
    batch_size: o.BatchSize = 64,
    accumulate: o.Accumulate = 1,
    grad_checkpointing: o.GradCheckpointing = False,
    weight_decay: o.WeightDecay = 0.05,
    warmup: o.Warmup = 1.0,
    label_smoothing: o.Smoothing = 0.1,
    mixup: o.Mixup = 0.0,
    cutmix: o.Cutmix = 0.0,
    ema: o.Ema = 0.0,
    patience: o.Patience = 0,
    flip: o.Flip = True,
    crop_padding: o.CropPadding = 0,
    erasing: o.Erasing = 0.0,
    randaugment: o.Randaugment = 0.0,
    amp: o.Amp = "auto",
    optimizer: o.Optimizer = "adamw",
    set_: o.Settings = None,
    distill: Annotated[bool, typer.Option("--distill/--no-distill", help="The dense model teaches.")] = True,
    distill_weight: o.DistillWeight = 0.9,
    distill_temperature: o.DistillTemperature = 2.0,
    feature_weight: o.FeatureWeight = 0.0,
    feature_layers: o.FeatureLayers = "",
    new_head: o.NewHead = False,
    limit: o.Limit = None,
    val_fraction: o.ValFraction = 0.1,
    workers: o.Workers = 0,
    repeat_channels: o.RepeatChannels = False,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    out: o.Out = None,
    force: o.Force = False,
    resume: o.Resume = True,
    checkpoint_every: o.CheckpointEvery = 0,
    tracker: o.Tracker = None,
    log_dir: o.LogDir = None,
    allow_module: o.AllowModule = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Prune MODEL to a target, fine-tune it on DATA, measure it before and after, and save it."""
    run = request(**locals())
    from vitprune.pipeline.prune_run import run_prune

    place = out or o.default_out(model, run.title)
    result = run_prune(
        model,
        run.data,
        run.settings,
        run.training,
        place,
        force=force,
        resume=resume,
        upkeep=o.upkeep(checkpoint_every, tracker, log_dir, place),
        command=command_line(),
        **run.how,
    )
    _show(result, json)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to save in.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 4,
    device: o.Device = "cpu",
    force: o.Force = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Prune three quarters of a small ViT's MACs on real images: no network, about two minutes on two CPU cores."""
    from vitprune.pipeline.demo_run import run_demo
    from vitprune.progress import make_progress

    said = make_progress(quiet)
    result = run_demo(out, device=device, force=force, epochs=epochs, command=command_line(), progress=said)
    _show(result, json)


def _show(result: Any, json: bool) -> None:
    from vitprune.report import print_rows

    plan = result.plan
    if not is_main():
        return
    if json:
        rows = [row.to_json() for row in result.rows]
        about = {"asked": plan.asked, "obtained": plan.obtained, "notes": plan.settings.get("notes", [])}
        print_json({"out": str(result.folder), **about, "rows": rows, "history": result.history})
        return
    asked = ", ".join(f"{k}={v:g}" for k, v in plan.asked.items())
    got = ", ".join(f"{k}={v['ratio']:.4f}" for k, v in plan.obtained.items())
    print_rows(result.rows, f"asked {asked or 'the ratios'}; obtained {got or 'nothing pruned'}")
    print(f"saved: {result.folder}  (vitprune.load({str(result.folder)!r}))")
