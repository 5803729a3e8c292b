"""What an epoch's training steps gave so far: loss, accuracy, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitprune.recover.settings import TrainError


@dataclass(slots=True)
class Meter:
    """Sums over the steps of one epoch; steps are looked at together, as each look waits for the device."""

    steps: int = 0  # looked at
    loss: float = 0.0  # sum over those steps
    right: float = 0.0  # training images classified rightly, over all processes
    images: float = 0.0
    speed: float = 0.0  # images per second between the last two looks
    recent: float = 0.0  # mean loss of the steps between them
    _pending: list[Tensor] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, loss: Tensor, right: Tensor, images: int) -> None:
        """A step: its loss, and how many of its images were classified rightly, all on the device."""
        counts = torch.tensor(float(images), device=loss.device)
        self._pending.append(torch.stack((loss.float(), right.float(), counts)))

    def look(self, first_step: int, mean: Callable[[Tensor], Tensor], processes: int) -> None:
        """Takes in what was added. `mean`: over processes; `first_step`: number of the epoch's first step.

        Raises TrainError naming the first step whose loss is not finite.
        """
        if not self._pending:
            return
        rows = mean(torch.stack(self._pending)).tolist()
        self._pending = []
        now, images, before = time.monotonic(), 0.0, self.loss
        for loss, right, seen in rows:
            if not torch.isfinite(torch.tensor(loss)):
                raise TrainError(
                    f"the loss became {loss} at step {first_step + self.steps}; "
                    "lower the learning rate, lengthen the warm-up, or train without autocast (amp no)"
                )
            self.steps += 1
            self.loss += loss
            self.right += right * processes
            images += seen * processes
        self.images += images
        self.recent = (self.loss - before) / len(rows)
        self.speed, self._since = images / max(now - self._since, 1e-9), now

    @property
    def mean_loss(self) -> float:
        """Over the steps that were looked at."""
        return self.loss / max(1, self.steps)

    @property
    def top1(self) -> float:
        """Share of the training images that were classified rightly."""
        return self.right / max(1.0, self.images)

    def to_json(self) -> dict[str, float]:
        """The sums, after a look."""
        assert not self._pending
        return {"steps": self.steps, "loss": self.loss, "right": self.right, "images": self.images}


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
