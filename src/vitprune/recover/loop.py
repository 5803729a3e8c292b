"""The state of a training run, and its epochs and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.data.batches import Batch, Batches
from vitprune.models.loaded import logits, plain
from vitprune.progress import Progress
from vitprune.recover import checkpoint as ckpt
from vitprune.recover.hook import CostHook, StatefulHook, StepHook
from vitprune.recover.interrupt import Patience
from vitprune.recover.meter import Meter, duration
from vitprune.recover.parts import Parts, State, check_same
from vitprune.recover.runtime import Runtime, resolve_amp
from vitprune.recover.settings import EpochRecord, History, TrainError, TrainSettings
from vitprune.recover.splits import first_images, share_out_, two_images
from vitprune.recover.stall import stalled
from vitprune.recover.step import TrainStep
from vitprune.recover.teaching import Teaching
from vitprune.recover.upkeep import Upkeep

CHECK_EVERY = 20  # steps between looks at the loss, each of which waits for the device


class Loop:
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
        upkeep: Upkeep,
    ) -> None:
        self.runtime = Runtime(device, resolve_amp(settings.amp, device), upkeep.trackers, upkeep.log_dir)
        self.model = plain(model).to(self.runtime.device)
        self.train, self.val, self.settings = train, val, settings
        self.folder, self.progress = folder, progress
        also: object = hook  # a hook may be more than a StepHook
        self.has_state = also if isinstance(also, StatefulHook) else None
        self.has_cost = also if isinstance(also, CostHook) else None
        self.teacher = teacher.to(self.runtime.device).eval() if teacher is not None else None
        share_out_(train, val, self.runtime)
        self.called = self.runtime.wrap(model, self._some_images)
        some = first_images(train, self.runtime)
        self.teaching = Teaching(
            self.model, self.teacher, settings, self._some_images, some, self.runtime.sum, progress
        )
        self.average = self._averaged()
        averaged = None if self.average is None else self.average.module
        self.steps = -(-len(train) // settings.accumulate)  # per epoch
        self.train_step = TrainStep(
            self.model,
            self.called,
            self.average,
            hook,
            self.teaching,
            self._some_images,
            settings,
            self.steps,
            self.runtime,
        )
        self.optimizer = self.train_step.optimizer
        self.parts = Parts(self.model, self.optimizer, averaged, self.teaching.features, self.has_state)
        self.records: list[EpochRecord] = []
        self.best: State | None = None
        self.start: float | None = None  # validation top-1 before training, see `measure_start`
        self.upkeep, self.patience = upkeep, Patience()
        self.meter = Meter()
        self.cost: float | None = None  # the hook's, when it was last looked at
        self.spent = 0.0  # seconds in the epoch before it was taken up again
        self.began: tuple[float, int] | None = None  # when and where this process took its first step

    def _averaged(self) -> Any:
        if not self.settings.ema:
            return None
        from timm.utils import ModelEmaV3

        return ModelEmaV3(self.model, decay=self.settings.ema, use_warmup=True)

    def _some_images(self) -> Tensor:
        return two_images(self.val, self.runtime)

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, or what is left of it, validation, and a checkpoint."""
        began, steps, done = time.monotonic() - self.spent, self.steps, self.meter.steps
        self.train.set_epoch(epoch, done * self.settings.accumulate)
        self.called.train()
        self.progress.start(f"epoch {epoch + 1}/{self.settings.epochs}", steps)
        self.progress.advance(done)
        text = ""
        try:
            batches = iter(self.train) if done < steps else iter(())
            for i in range(done, steps):
                step = epoch * steps + i
                passes = self._passes(i)
                self.meter.add(*self.train_step(step, self._next(batches, step, passes), passes))
                self._watch(epoch, i + 1, time.monotonic() - began)
                self.progress.advance(1, **self._facts(step + 1))
            top1 = self._validate(lambda: self._leave(epoch, steps, time.monotonic() - began))
            rate, mean = float(self.optimizer.param_groups[0]["lr"]), self.meter.mean_loss
            seconds = time.monotonic() - began
            values = {"val/top1": top1, "val/epoch": float(epoch + 1)}
            cost, settled = self._standing((epoch + 1) * steps - 1)
            values |= {} if cost is None else {"val/cost": cost}
            self.runtime.log(values, (epoch + 1) * steps)
            self.records.append(EpochRecord(epoch, mean, rate, top1, seconds, self.meter.top1, cost, settled))
            if self.settings.keep == "best" and self._history().best_epoch == epoch:
                self.best = {k: v.detach().clone() for k, v in self._evaluated().state_dict().items()}
            self.meter, self.spent = Meter(), 0.0
            self._save(epoch)
            at = "" if cost is None else f"cost {cost:.4f}, "
            text = f"loss {mean:.4f}, {at}validation top-1 {100 * top1:.2f} %, {seconds:.1f} s"
        finally:
            self.progress.done(text if self.runtime.main else "")

    def _standing(self, step: int) -> tuple[float | None, bool]:
        """The hook's cost and whether it is low enough, the same in all processes; None and True without one."""
        if self.has_cost is None:
            return None, True
        cost, settled = self.has_cost.standing(step)
        mean = self.runtime.mean(torch.tensor(cost, dtype=torch.float64, device=self.runtime.device))
        return float(mean), not (self.runtime.any(not settled) if self.runtime.distributed else not settled)

    def stalled(self) -> bool:
        """Whether `patience` is at its end."""
        patience = self.settings.patience
        if not stalled(self.records, patience):
            return False
        what = "the validation top-1 has not risen" + ("" if self.has_cost is None else ", and the cost not fallen,")
        self.progress.line(
            f"stopped after epoch {len(self.records)} of {self.settings.epochs}: {what} for {patience} epochs"
        )
        return True

    def _passes(self, i: int) -> int:
        """Forward and backward passes of an epoch's step; its last step has what is left."""
        return min(self.settings.accumulate, len(self.train) - i * self.settings.accumulate)

    def _watch(self, epoch: int, done: int, seconds: float) -> None:
        """After a step: looks at the loss, leaves a checkpoint, or stops, where it is time."""
        every = self.upkeep.checkpoint_every if self.folder is not None else 0
        due = bool(every) and (epoch * self.steps + done) % every == 0 and done < self.steps
        look = done % CHECK_EVERY == 0 or done == self.steps
        if look or due or (self.patience.asked is not None and not self.runtime.distributed):
            self.meter.look(epoch * self.steps, self.runtime.mean, self.runtime.world)
        if look:
            values = {"loss": self.meter.recent, "top1": self.meter.top1, "images_per_second": self.meter.speed}
            values["lr"] = float(self.optimizer.param_groups[0]["lr"])
            self.cost, _ = self._standing(epoch * self.steps + done - 1)
            values |= {} if self.cost is None else {"cost": self.cost}
            self.runtime.log({f"train/{name}": value for name, value in values.items()}, epoch * self.steps + done)
        if due:
            self._save(epoch, done, seconds)
        if look or not self.runtime.distributed:
            self._leave(epoch, done, seconds)

    def _leave(self, epoch: int, done: int, seconds: float) -> None:
        """Saves and stops, if a signal came; several processes agree on it."""
        asked = self.patience.asked is not None
        if self.runtime.any(asked) if self.runtime.distributed else asked:
            self._save(epoch, done, seconds)
            self.progress.line(f"stopped after step {epoch * self.steps + done}; the checkpoint is in {self.folder}")
            self.patience.act()
            raise KeyboardInterrupt

    def _facts(self, done: int) -> dict[str, float | str]:
        """What is shown beside the bar after `done` steps of the run."""
        now = time.monotonic()
        if self.began is None:
            self.began = (now, done)
        since, first = self.began
        if done == first or not self.meter.steps:
            return {}
        left = (now - since) / (done - first) * (self.settings.epochs * self.steps - done)
        facts: dict[str, float | str] = {"loss": self.meter.mean_loss, "top-1": f"{100 * self.meter.top1:.1f} %"}
        facts |= {} if self.cost is None else {"cost": round(self.cost, 4)}
        return facts | {"images/s": round(self.meter.speed, 1), "left": duration(left)}

    def _next(self, batches: Iterator[Batch], step: int, passes: int) -> Iterator[Batch]:
        """The batches of a step, read when they are asked for."""
        for _ in range(passes):
            try:
                batch = next(batches, None)
            except RuntimeError:  # a signal for the whole process group ends the workers that read images, too
                if self.patience.asked is not None and not self.runtime.distributed:
                    self.meter.look(step - self.meter.steps, self.runtime.mean, self.runtime.world)
                    self._leave(step // self.steps, step % self.steps, self.spent)
                raise
            if batch is None:
                raise TrainError(f"the training images ended before step {step}, though they said to be more")
            yield batch

    def _evaluated(self) -> nn.Module:
        """The weights that count: the averaged ones where averaging is on."""
        averaged: nn.Module | None = None if self.average is None else self.average.module
        return self.model if averaged is None else averaged

    @torch.no_grad()
    def _validate(self, between: Callable[[], None] | None = None) -> float:
        """Top-1 on the validation images; `between` is called after every batch where there is one process."""
        module = self._evaluated().eval()
        right = torch.zeros(2, device=self.runtime.device, dtype=torch.int64)  # correct, seen
        for images, labels in self.val:
            with self.runtime.autocast():
                scores = logits(module(images.to(self.runtime.device)))
            right[0] += (scores.argmax(-1) == labels.to(self.runtime.device)).sum()
            right[1] += len(labels)
            if between is not None and not self.runtime.distributed:
                between()
        right = self.runtime.sum(right)
        return float(right[0]) / max(1, int(right[1]))

    def _identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other's checkpoint."""
        shapes = {k: list(v.shape) for k, v in self.model.state_dict().items()}
        own = {"images": self.train.size, "batches": len(self.train), "teacher": self.teacher is not None}
        own |= {"processes": self.runtime.world}
        return {"settings": self.settings.to_json(), "shapes": shapes} | own

    def _save(self, epoch: int, done: int | None = None, seconds: float = 0.0) -> None:
        """A checkpoint of the end of an epoch, or of the state after `done` of its steps."""
        if self.folder is not None:  # in all processes, which then stop together
            self.parts.check_finite(epoch * self.steps + (self.steps if done is None else done) - 1, self.folder)
        if self.folder is not None and self.runtime.main:
            tensors = self.parts.tensors() | ({} if self.best is None else {"best": self.best})
            records = [History.of((r,), "last").to_json()["epochs"][0] for r in self.records]
            state = {"run": self._identity(), "records": records, "start": self.start}
            state |= {"meter": self.meter.to_json(), "seconds": seconds, "scaler": self.runtime.scaler}
            ckpt.write(self.folder, epoch, ckpt.Checkpoint(state, tensors), done)
        self.runtime.wait()

    def resume(self) -> None:
        """Takes up the newest checkpoint, if there is one."""
        found = ckpt.read_last(self.folder) if self.folder is not None else None
        if found is None or self.folder is None:
            return
        check_same(self._identity(), found.state["run"], self.folder)
        self.parts.load_(found.tensors)
        if "best" in found.tensors:
            self.best = {k: v.to(self.runtime.device) for k, v in found.tensors["best"].items()}
        self.records = [EpochRecord(**r) for r in found.state["records"]]
        self.start = found.state.get("start")
        self.meter, self.spent = Meter(**found.state["meter"]), found.state["seconds"]
        self.runtime.scaler = found.state["scaler"]
        within = f", step {self.meter.steps} of {self.steps}" if self.meter.steps else ""
        self.progress.line(
            f"going on after epoch {len(self.records)}{within} of {self.settings.epochs} in {self.folder}"
        )

    def measure_start(self) -> None:
        """The weights that come in are the first to beat: training on few images may make a good model worse.

        What a `CostHook` leaves of a model is compared with them, too.
        """
        wanted = self.settings.keep == "best" or self.has_cost is not None
        if wanted and self.start is None and not self.records and not self.meter.steps:
            self.start = self._validate(self.patience.act)  # nothing to save yet
        if self.settings.keep == "best" and self.best is None:
            self.best = {k: v.detach().clone() for k, v in self._evaluated().state_dict().items()}

    def _history(self) -> History:
        return History.of(tuple(self.records), self.settings.keep, self.start)

    def finish(self) -> History:
        """Leaves the wanted weights in the model, and whole splits to this process."""
        for split in (self.train, self.val):
            split.set_shard(0, 1)
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
