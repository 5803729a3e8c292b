"""What each of two processes does in the test of several processes; run as a script, results go to a folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from training_parts import BASE, Counter, quarters, small
from vitprune.data import TensorBatches
from vitprune.preprocessing import Preprocessing
from vitprune.processes import rank
from vitprune.progress import make_progress
from vitprune.recover import TrainError, TrainSettings, fit

PLAIN = replace(BASE, batch_size=8, clip=0.5, weight_decay=0.1)


class Tokens(nn.Module):
    """Four patches as tokens, a block on each, and their mean to four classes; one parameter takes no part."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patch = nn.Conv2d(1, width, 4, 4)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, 4)
            self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 4)."""
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.norm(tokens + self.mlp(tokens)).mean(1))
        return out


def dry(seed: int = 0) -> nn.Module:
    """The small model without dropout, which draws other numbers in each process."""
    model = small(seed)
    model.drop.p = 0.0
    return model


def plain(settings: TrainSettings, count: int = 96, *, shuffle: bool = True) -> TensorBatches:
    """Images without augmentation, which draws other numbers in each process."""
    made = quarters(count)
    prep = Preprocessing((8, 8), (0.5,), (0.5,), "bilinear", 1)
    return TensorBatches(made._images, made._labels, prep, batch_size=settings.batch_size, shuffle=shuffle)


Case = tuple[Callable[[], nn.Module], TrainSettings, Callable[[], nn.Module] | None]
CASES: dict[str, Case] = {
    "plain": (dry, PLAIN, None),
    "averaged": (dry, replace(PLAIN, ema=0.9, accumulate=2, keep="best"), None),
    "features": (
        lambda: Tokens(8, 0),
        replace(PLAIN, feature_weight=1.0, feature_layers="norm"),
        lambda: Tokens(12, 1),
    ),
}


def run(name: str, factor: int = 1) -> tuple[nn.Module, Any]:
    """The trained model of a case, and its history; `factor` multiplies the batch of a process."""
    make, settings, teacher = CASES[name]
    settings = replace(settings, batch_size=settings.batch_size * factor)
    model = make()
    history = fit(
        model, plain(settings), plain(settings, 41, shuffle=False), settings,
        teacher=None if teacher is None else teacher(), progress=make_progress(),
    )  # fmt: skip
    return model, history


class Poison(Counter):
    """A loss that is not finite in one process alone."""

    def extra_loss(self, step: int) -> Tensor:
        """NaN at step 9 of process 1."""
        return torch.tensor(float("nan") if step == 9 and rank() == 1 else 0.0)


class Stops(Counter):
    """A signal to one process alone."""

    def after_step(self, step: int) -> None:
        """At step 8 of process 1."""
        if step == 8 and rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)


def main(out: Path) -> None:
    """All cases; errors are written by every process, results by the main one."""
    errors: list[str] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start what runs in the background without
    for name in CASES:
        model, history = run(name)
        if rank() == 0:
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / f"{name}.safetensors")
            (out / f"{name}.txt").write_text(" ".join(repr(e.loss) for e in history.epochs))
    data = plain(PLAIN), plain(PLAIN, 41, shuffle=False)
    for hook, images in ((Poison(), data[0]), (None, plain(PLAIN, 1))):
        try:
            fit(dry(), images, data[1], PLAIN, hook=hook)
        except TrainError as error:
            errors.append(str(error))
    model = dry()
    try:
        fit(model, *data, PLAIN, hook=Stops(), checkpoint_dir=out / "stopped", progress=make_progress())
    except KeyboardInterrupt:
        errors.append("stopped")
    folders = [p.name for p in (out / "stopped").iterdir()]
    fit(model, *data, PLAIN, checkpoint_dir=out / "stopped", progress=make_progress())
    if rank() == 0:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "resumed.safetensors")
    (out / f"errors-{rank()}.txt").write_text("\n".join([*errors, *folders]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
