"""`vitprune train` and `vitprune finetune`."""

from __future__ import annotations

from typing import Any

from vitprune.cli import options as o
from vitprune.cli.run import print_json
from vitprune.errors import TargetError
from vitprune.processes import is_main


def train(
    model: o.Model,
    data: o.Data,
    epochs: o.Epochs = 100,
    lr: o.Lr = 1e-3,
    batch_size: o.BatchSize = 128,
    accumulate: o.Accumulate = 1,
    grad_checkpointing: o.GradCheckpointing = False,
    weight_decay: o.WeightDecay = 0.05,
    warmup: o.Warmup = 5.0,
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
    teacher: o.Teacher = None,
    distill_weight: o.DistillWeight = 0.9,
    distill_temperature: o.DistillTemperature = 2.0,
    feature_weight: o.FeatureWeight = 0.0,
    feature_layers: o.FeatureLayers = "",
    set_: o.Settings = None,
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
    """Train MODEL on DATA from its library's initial weights, and save it."""
    _run(from_scratch=True, **locals())


def finetune(
    model: o.Model,
    data: o.Data,
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
    teacher: o.Teacher = None,
    distill_weight: o.DistillWeight = 0.9,
    distill_temperature: o.DistillTemperature = 2.0,
    feature_weight: o.FeatureWeight = 0.0,
    feature_layers: o.FeatureLayers = "",
    set_: o.Settings = None,
    limit: o.Limit = None,
    val_fraction: o.ValFraction = 0.1,
    workers: o.Workers = 0,
    repeat_channels: o.RepeatChannels = False,
    new_head: o.NewHead = False,
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
    """Train MODEL further on DATA, dense or pruned, and save it."""
    _run(from_scratch=False, **locals())


def _run(*, model: str, data: str, from_scratch: bool, epochs: int, warmup: float, out: Any, **rest: Any) -> None:
    from vitprune.pipeline.setup import DataSettings
    from vitprune.pipeline.train_run import run_train
    from vitprune.progress import make_progress
    from vitprune.report import print_rows

    training = o.train_settings(
        epochs, rest["set_"] or (), warmup_epochs=warmup, **{name: rest[name] for name in o.TRAINING}
    )
    if training is None:
        raise TargetError("--epochs must be at least 1")
    reading = DataSettings(data, rest["limit"], rest["val_fraction"], rest["workers"], rest["repeat_channels"])
    place = out or o.default_out(model, "trained" if from_scratch else "finetuned")
    result = run_train(
        model,
        reading,
        training,
        place,
        from_scratch=from_scratch,
        device=rest["device"],
        force=rest["force"],
        resume=rest["resume"],
        new_head=rest.get("new_head", False),
        teacher=rest["teacher"],
        allow_module=rest["allow_module"],
        upkeep=o.upkeep(rest["checkpoint_every"], rest["tracker"], rest["log_dir"], place),
        progress=make_progress(rest["quiet"]),
    )
    if not is_main():
        return
    if rest["json"]:
        rows = [row.to_json() for row in result.rows]
        print_json({"out": str(result.folder), "rows": rows, "history": result.history})
        return
    print_rows(result.rows)
    print(f"saved: {result.folder}  (vitprune.load({str(result.folder)!r}))")
