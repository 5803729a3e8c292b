"""One optimizer step of a training run: forward and backward passes, gradients, new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.data.batches import Batch
from vitprune.models.loaded import logits
from vitprune.recover.hook import LossHook, ParameterHook, StepHook
from vitprune.recover.loss import Mixer, make_mixer, task_loss
from vitprune.recover.optimizer import add_groups_, learning_rate, make_optimizer, set_learning_rate_
from vitprune.recover.runtime import Runtime
from vitprune.recover.settings import TrainSettings
from vitprune.recover.teaching import Teaching, classes


class TrainStep:
    """Changes the model's weights, those of `teaching`'s maps and of the hook; its optimizer is made here.

    model: without what `called`, which forward passes go through, has around it. average: timm's averaged weights.
    """

    def __init__(
        self,
        model: nn.Module,
        called: nn.Module,
        average: Any,
        hook: StepHook | None,
        teaching: Teaching,
        some_images: Callable[[], Tensor],
        settings: TrainSettings,
        steps: int,
        runtime: Runtime,
    ) -> None:
        self.model, self.called, self.average, self.hook = model, called, average, hook
        self.teaching, self.settings, self.steps, self.runtime = teaching, settings, steps, runtime
        also: object = hook  # a hook may be more than a StepHook
        self.adds_loss = also if isinstance(also, LossHook) else None
        self.optimizer = make_optimizer(model, settings, fused=runtime.amp != "fp16")
        self.hooked: list[nn.Parameter] = []
        if isinstance(also, ParameterHook):
            groups = also.extra_parameters()
            add_groups_(self.optimizer, groups)
            self.hooked = [p for parameters, _, _ in groups.values() for p in parameters]
        if parameters := teaching.parameters():
            maps = {"params": parameters, "weight_decay": settings.weight_decay, "lr_scale": 1.0}
            self.optimizer.add_param_group(maps)
        own = {id(p) for p in model.parameters()}
        every = (p for group in self.optimizer.param_groups for p in group["params"])
        self.beside = [p for p in every if id(p) not in own]  # trained with the model, but no part of it
        self.stepper = runtime.prepare(self.optimizer)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.mixer: Mixer | None = None
        if settings.mixup or settings.cutmix:
            self.mixer = make_mixer(settings, classes(model, some_images()))

    def __call__(self, step: int, batches: Iterable[Batch], passes: int) -> tuple[Tensor, Tensor, int]:
        """One step of the run, of `passes` forward and backward passes; `batches` has one for each.

        Returns the mean loss, how many images were classified rightly, and how many there were.
        """
        set_learning_rate_(self.optimizer, learning_rate(self.settings, step, self.steps))
        total, right, images = [], [], 0
        for i, (x, labels) in enumerate(batches):
            self._seed(step, i)  # when the images are there: a loader that starts draws, too
            with self.runtime.alone(self.called, i + 1 < passes):
                loss, hits = self._pass(step, x, labels, passes)
            total.append(loss)
            right.append(hits)
            images += len(x)
        self.runtime.average_gradients(self.beside)
        if self.hook is not None:
            self.hook.after_backward(step)
            self.runtime.average_gradients(self.hooked)
        if self.settings.clip:
            self.runtime.clip(self.parameters, self.settings.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.hook is not None:
            self.hook.after_step(step)
        if self.average is not None:
            self.average.update(self.model, step=step)
        return torch.stack(total).mean(), torch.stack(right).sum(), images

    def _seed(self, step: int, i: int) -> None:
        number = (self.settings.seed * 1_000_003 + step) * 1009 + i
        torch.manual_seed((number * 4099 + self.runtime.rank) % 2**63)

    def _pass(self, step: int, images: Tensor, labels: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """Adds one pass' share of the gradients; its loss, and how many images it classified rightly."""
        x = images.to(self.runtime.device, non_blocking=True)
        target = labels.to(self.runtime.device, non_blocking=True)
        if self.mixer is not None:
            x, target = self.mixer(x, target)
        if self.hook is not None:
            self.hook.before_forward(step)
        with self.runtime.autocast():
            scores = logits(self.called(x))
            loss = task_loss(scores, target, self.settings.label_smoothing)
            loss = self.teaching(loss, x, scores)
            if self.adds_loss is not None:
                loss = loss + self.adds_loss.extra_loss(step)
        self.runtime.backward(loss / passes)
        heavier = target.argmax(-1) if target.ndim > 1 else target
        return loss.detach(), (scores.detach().argmax(-1) == heavier).sum()
