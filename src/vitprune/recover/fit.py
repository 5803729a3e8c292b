"""The one training loop: fine-tuning, training from scratch, distillation, training under masks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.data.batches import Batches
from vitprune.models.loaded import logits
from vitprune.progress import Progress, Silent
from vitprune.recover import checkpoint as ckpt
from vitprune.recover.hook import LossHook, ParameterHook, StatefulHook, StepHook
from vitprune.recover.loss import Mixer, distillation_loss, make_mixer, task_loss
from vitprune.recover.optimizer import add_groups_, learning_rate, make_optimizer, set_learning_rate_
from vitprune.recover.runtime import Runtime, resolve_amp
from vitprune.recover.settings import EpochRecord, History, TrainError, TrainSettings

CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device
State = dict[str, Tensor]


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    hook: StepHook | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> History:
    """What every epoch gave; `model` is trained in place and left on `device` in evaluation mode.

    With `checkpoint_dir` every epoch leaves a checkpoint there, and a run that finds one goes on from it: on the CPU
    with the same weights, bit for bit, as a run that never stopped. Random draws depend on (seed, epoch) alone. After
    Ctrl-C the last whole checkpoint stays.

    Raises:
        TrainError: the loss is not finite (names the step), the checkpoint belongs to another run or cannot be
            written, or the device is missing.
    """
    if len(train) == 0 or len(val) == 0:
        raise TrainError(f"training needs images, but got {train.size} for training and {val.size} for validation")
    run = _Run(model, train, val, settings, device, hook, teacher, checkpoint_dir, progress or Silent())
    devices = [run.runtime.device] if run.runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        run.resume()
        run.measure_start()
        for epoch in range(len(run.records), settings.epochs):
            torch.manual_seed(settings.seed * 1_000_003 + epoch * 1009 + run.runtime.rank)
            run.epoch(epoch)
    return run.finish()


class _Run:
    """State of one training run between its epochs."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        val: Batches,
        settings: TrainSettings,
        device: str,
        hook: StepHook | None,
        teacher: nn.Module | None,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self.runtime = Runtime(device, resolve_amp(settings.amp, device))
        self.model = model.to(self.runtime.device)
        self.train, self.val, self.settings = train, val, settings
        self.hook, self.folder, self.progress = hook, folder, progress
        also: object = hook  # a hook may be more than a StepHook
        self.adds_loss = also if isinstance(also, LossHook) else None
        self.has_state = also if isinstance(also, StatefulHook) else None
        self.teacher = teacher.to(self.runtime.device).eval() if teacher is not None else None
        for split in (train, val):
            split.set_shard(self.runtime.rank, self.runtime.world)
        self.called = self.runtime.wrap(self.model)
        self.optimizer = make_optimizer(self.model, settings, fused=self.runtime.amp != "fp16")
        if isinstance(also, ParameterHook):
            add_groups_(self.optimizer, also.extra_parameters())
        self.stepper = self.runtime.prepare(self.optimizer)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.average = self._averaged()
        self.records: list[EpochRecord] = []
        self.best: State | None = None
        self.start: float | None = None  # validation top-1 before training, where the best weights are kept
        self.mixer: Mixer | None = None
        if settings.mixup or settings.cutmix:
            self.mixer = make_mixer(settings, self._classes())

    def _averaged(self) -> Any:
        if not self.settings.ema:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.model, decay=self.settings.ema, use_warmup=True)

    def _classes(self) -> int:
        with torch.no_grad():
            images, _ = next(iter(self.val))
            self.model.eval()
            return int(logits(self.model(images[:1].to(self.runtime.device))).shape[-1])

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, validation, and a checkpoint."""
        began, steps = time.monotonic(), len(self.train)
        self.train.set_epoch(epoch)
        self.called.train()
        self.progress.start(f"epoch {epoch + 1}/{self.settings.epochs}", steps)
        losses: list[Tensor] = []
        mean, text = 0.0, ""
        try:
            for i, (images, labels) in enumerate(self.train):
                losses.append(self._step(epoch * steps + i, images, labels))
                if (i + 1) % CHECK_EVERY == 0 or i + 1 == steps:
                    mean = _finite_mean(losses, epoch * steps)
                self.progress.advance(1, loss=mean)
            top1 = self._validate()
            rate = float(self.optimizer.param_groups[0]["lr"])
            self.records.append(EpochRecord(epoch, mean, rate, top1, time.monotonic() - began))
            if self.settings.keep == "best" and self._history().best_epoch == epoch:
                self.best = {k: v.detach().clone() for k, v in self._evaluated().state_dict().items()}
            self._save(epoch)
            text = f"loss {mean:.4f}, validation top-1 {100 * top1:.2f} %, {self.records[-1].seconds:.1f} s"
        finally:
            self.progress.done(text if self.runtime.main else "")

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer step; the loss, detached."""
        set_learning_rate_(self.optimizer, learning_rate(self.settings, step, len(self.train)))
        x = images.to(self.runtime.device, non_blocking=True)
        target = labels.to(self.runtime.device, non_blocking=True)
        if self.mixer is not None:
            x, target = self.mixer(x, target)
        if self.hook is not None:
            self.hook.before_forward(step)
        with self.runtime.autocast():
            scores = logits(self.called(x))
            loss = task_loss(scores, target, self.settings.label_smoothing)
            if self.teacher is not None and self.settings.distill_weight:
                with torch.no_grad():
                    wanted = logits(self.teacher(x))
                share = self.settings.distill_weight
                soft = distillation_loss(scores, wanted, self.settings.distill_temperature)
                loss = (1 - share) * loss + share * soft
            if self.adds_loss is not None:
                loss = loss + self.adds_loss.extra_loss(step)
        self.runtime.backward(loss)
        if self.hook is not None:
            self.hook.after_backward(step)
        if self.settings.clip:
            self.runtime.clip(self.parameters, self.settings.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.hook is not None:
            self.hook.after_step(step)
        if self.average is not None:
            self.average.update(self.model, step=step)
        return loss.detach()

    def _evaluated(self) -> nn.Module:
        """The weights that count: the averaged ones where averaging is on."""
        averaged: nn.Module | None = None if self.average is None else self.average.module
        return self.model if averaged is None else averaged

    @torch.no_grad()
    def _validate(self) -> float:
        module = self._evaluated().eval()
        right = torch.zeros(2, device=self.runtime.device, dtype=torch.int64)  # correct, seen
        for images, labels in self.val:
            with self.runtime.autocast():
                scores = logits(module(images.to(self.runtime.device)))
            right[0] += (scores.argmax(-1) == labels.to(self.runtime.device)).sum()
            right[1] += len(labels)
        right = self.runtime.sum(right)
        return float(right[0]) / max(1, int(right[1]))

    def _identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other's checkpoint."""
        shapes = {k: list(v.shape) for k, v in self.model.state_dict().items()}
        own = {"images": self.train.size, "batches": len(self.train), "teacher": self.teacher is not None}
        return {"settings": self.settings.to_json(), "shapes": shapes} | own

    def _save(self, epoch: int) -> None:
        if self.folder is not None and self.runtime.main:
            tensors: dict[str, State] = {"model": self.model.state_dict()}
            tensors["optimizer"] = ckpt.pack_optimizer(self.optimizer)
            if self.average is not None:
                tensors["average"] = self.average.module.state_dict()
            if self.best is not None:
                tensors["best"] = self.best
            if self.has_state is not None:
                tensors["hook"] = self.has_state.state_dict()
            records = [History.of((r,), "last").to_json()["epochs"][0] for r in self.records]
            state = {"run": self._identity(), "records": records, "start": self.start}
            ckpt.write(self.folder, epoch, ckpt.Checkpoint(state, tensors))
        self.runtime.wait()

    def resume(self) -> None:
        """Takes up the newest checkpoint, if there is one."""
        found = ckpt.read_last(self.folder) if self.folder is not None else None
        if found is None:
            return
        mine, theirs = self._identity(), found.state["run"]
        if mine != theirs:
            differing = [k for k in mine["settings"] if mine["settings"][k] != theirs["settings"].get(k)]
            differing += [k for k in mine if k != "settings" and mine[k] != theirs.get(k)]
            raise TrainError(
                f"{self.folder} holds checkpoints of another run (differs in {', '.join(differing)}); "
                "give another folder, or delete it to start over"
            )
        tensors = found.tensors
        self.model.load_state_dict(dict(tensors["model"]))
        ckpt.unpack_optimizer_(self.optimizer, tensors["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(dict(tensors["average"]))
        if "best" in tensors:
            self.best = {k: v.to(self.runtime.device) for k, v in tensors["best"].items()}
        if self.has_state is not None:
            self.has_state.load_state_dict(dict(tensors.get("hook", {})))
        self.records = [EpochRecord(**r) for r in found.state["records"]]
        self.start = found.state.get("start")
        self.progress.line(f"going on after epoch {len(self.records)} of {self.settings.epochs} in {self.folder}")

    def measure_start(self) -> None:
        """The weights that come in are the first to beat: training on few images may make a good model worse."""
        if self.settings.keep == "best" and not self.records:
            self.start = self._validate()
            self.best = {k: v.detach().clone() for k, v in self._evaluated().state_dict().items()}

    def _history(self) -> History:
        return History.of(tuple(self.records), self.settings.keep, self.start)

    def finish(self) -> History:
        """Leaves the wanted weights in the model."""
        history = self._history()
        if history.best_epoch < 0 and self.settings.keep == "best" and self.runtime.main:
            self.progress.line(
                f"no epoch was better on the validation images than the start ({100 * history.best_val_top1:.2f} %): "
                "its weights are kept; a lower learning rate, or keep=last, may be what you want"
            )
        if self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.zero_grad(set_to_none=True)
        self.model.eval()
        return history


def _finite_mean(losses: list[Tensor], first_step: int) -> float:
    """The mean loss so far. Raises TrainError naming the first step whose loss is not finite."""
    values = torch.stack(losses)
    bad = torch.nonzero(~torch.isfinite(values))
    if len(bad):
        step = first_step + int(bad[0, 0])
        raise TrainError(
            f"the loss became {float(values[int(bad[0, 0])])} at step {step}; "
            "lower the learning rate, lengthen the warm-up, or train without autocast (amp no)"
        )
    return float(values.mean())
