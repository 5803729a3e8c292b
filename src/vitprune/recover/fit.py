"""The one training loop: fine-tuning, training from scratch, distillation, training under masks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from vitprune.data.batches import Batches
from vitprune.progress import Progress, Silent
from vitprune.recover.hook import StepHook
from vitprune.recover.loop import Loop
from vitprune.recover.memory import checkpointing
from vitprune.recover.settings import History, TrainError, TrainSettings
from vitprune.recover.upkeep import Upkeep


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    hook: StepHook | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | str | None = None,
    upkeep: Upkeep | None = None,
    progress: Progress | None = None,
) -> History:
    """What every epoch gave; `model` is trained in place and left on `device` in evaluation mode.

    `model` may be wrapped by `torch.compile`: training runs what it compiles, validation the model itself.

    With `checkpoint_dir` every epoch leaves a checkpoint there, and so do every `upkeep.checkpoint_every` steps, Ctrl-C
    and SIGTERM, which wait for the end of the step (a second one does not). A run that finds a checkpoint goes on from
    it: on the CPU with the same weights, bit for bit, as a run that never stopped. Random draws depend on (seed, step)
    alone.

    Raises:
        TrainError: the loss or the weights are not finite (names the step; the last checkpoint stays), the checkpoint
            belongs to another run or cannot be written, the model has no gradient checkpointing, or the device is
            missing.
    """
    if len(train) == 0 or len(val) == 0:
        raise TrainError(f"training needs images, but got {train.size} for training and {val.size} for validation")
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    with torch.random.fork_rng(devices=[]):
        run = Loop(model, train, val, settings, device, hook, teacher, folder, progress or Silent(), upkeep or Upkeep())
    devices = [run.runtime.device] if run.runtime.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        if checkpoint_dir is not None:
            stack.enter_context(run.patience)
        run.resume()
        run.measure_start()
        stack.callback(run.runtime.end_tracking)
        run.runtime.track(settings.to_json(), len(run.records) * run.steps + run.meter.steps)
        stack.enter_context(checkpointing(run.model, settings.grad_checkpointing))
        if run.teaching.features is not None:
            stack.enter_context(run.teaching.features.open())
        for epoch in range(len(run.records), settings.epochs):
            if run.stalled():
                break
            run.epoch(epoch)
    return run.finish()
