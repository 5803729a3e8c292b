"""A small classifier, its images and a run: what the tests of training share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vitprune.data import AugmentSettings, TensorBatches
from vitprune.preprocessing import Preprocessing
from vitprune.recover import History, TrainSettings, fit

PREP = Preprocessing((8, 8), (0.5,), (0.5,), "bilinear", 1)
BASE = TrainSettings(epochs=3, lr=3e-3, batch_size=16, warmup_epochs=0.5, amp="no", keep="last", label_smoothing=0.0)
State = dict[str, Tensor]


class Small(nn.Module):
    """A classifier with dropout, so that random draws matter."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Linear(64, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 4)."""
        out: Tensor = self.head(self.drop(torch.nn.functional.gelu(self.norm(self.body(x.flatten(1))))))
        return out


def small(seed: int = 0) -> Small:
    """A model with weights by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


def quarters(count: int = 96, *, shuffle: bool = True, seed: int = 0) -> TensorBatches:
    """Images whose bright quarter is the class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 80, (count, 1, 8, 8), generator=generator)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (int(label) // 2), 4 * (int(label) % 2)
        image[:, row : row + 4, column : column + 4] += 90
    augment = AugmentSettings(flip=False, crop_padding=4, erasing=0.2) if shuffle else None
    return TensorBatches(
        images.to(torch.uint8), labels, PREP, batch_size=16, shuffle=shuffle, seed=seed, augment=augment
    )


def trained(settings: TrainSettings, folder: Path | None = None, **more: object) -> tuple[State, History]:
    """The weights after a run, and its history."""
    model = small()
    history = fit(model, quarters(), quarters(40, shuffle=False), settings, checkpoint_dir=folder, **more)  # type: ignore[arg-type]
    assert not model.training
    return model.state_dict(), history


def equal(a: State, b: State) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Counter:
    """Records the calls and may stop at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.stop_at, self.total = stop_at, torch.zeros(1)

    def before_forward(self, step: int) -> None:
        """Stops where asked."""
        self.calls.append(("before", step))
        if step == self.stop_at:
            raise KeyboardInterrupt

    def after_backward(self, step: int) -> None:
        """Counts."""
        self.calls.append(("backward", step))

    def after_step(self, step: int) -> None:
        """Counts."""
        self.calls.append(("step", step))
        self.total += 1

    def state_dict(self) -> State:
        """The number of steps."""
        return {"total": self.total}

    def load_state_dict(self, state: State) -> None:
        """Restores it."""
        self.total = state["total"].clone()
