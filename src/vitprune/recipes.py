"""Published training recipes as settings: a model, how it is trained, on how many processes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from vitprune.recover.settings import TrainError, TrainSettings

SIZES = ("tiny", "small", "base")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training run but for its data."""

    model: str  # the MODEL argument
    settings: TrainSettings  # batch_size is of one process
    processes: int  # one per GPU
    workers: int  # processes that read images, for each of them

    @property
    def batch(self) -> int:
        """Images per step, over all processes and passes."""
        return self.settings.batch_size * self.settings.accumulate * self.processes

    def command(self, data: str, out: str) -> str:
        """The command line that runs it on one machine, by accelerate; fields that have their default are left out."""
        usual = TrainSettings().to_json()
        own = {k: v for k, v in self.settings.to_json().items() if v != usual[k] and k not in ("epochs", "batch_size")}
        launch = "accelerate launch" + (f" --multi_gpu --num_processes {self.processes}" if self.processes > 1 else "")
        parts = [launch, f"-m vitprune train {shlex.quote(self.model)} --data {shlex.quote(data)}"]
        parts += [f"--out {shlex.quote(out)} --workers {self.workers} --epochs {self.settings.epochs}"]
        parts += [f"--batch-size {self.settings.batch_size}"]
        parts += [
            f"--set {name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in own.items()
        ]
        return " ".join(parts)


def imagenet_deit(
    size: str = "small", *, processes: int = 8, batch: int = 1024, accumulate: int = 1, epochs: int = 300, seed: int = 0
) -> Recipe:
    """DeiT-Ti, -S or -B from scratch on ImageNet-1k, as published: 300 epochs of AdamW at 5e-4 x batch / 512.

    batch: images per step, over all processes and passes. Published top-1: 72.2, 79.8 and 81.8 %.

    Raises TrainError for another size, or a batch that does not divide among processes and passes.

    Source: arXiv 2012.12877, table 9, and its code's EMA of 0.99996. Deviations: images are not repeated within a batch
    (three times there); the warm-up begins at the first step's share of the rate, not at 1e-6; erased rectangles cover
    2-25 % of an image, not 2-33 %.
    """
    if size not in SIZES:
        raise TrainError(f"size must be one of {', '.join(SIZES)}, but got {size!r}")
    each, rest = divmod(batch, processes * accumulate) if processes > 0 and accumulate > 0 else (0, 0)
    if rest or each < 1:
        raise TrainError(
            f"a batch of {batch} must divide among {processes} processes and {accumulate} passes; change one of them"
        )
    settings = TrainSettings(
        epochs=epochs,
        lr=5e-4 * batch / 512,
        weight_decay=0.05,
        warmup_epochs=5.0,
        min_lr=0.01,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        ema=0.99996,
        clip=0.0,
        batch_size=each,
        accumulate=accumulate,
        seed=seed,
        keep="last",  # ImageNet's validation images are those that results are reported on: no epoch is chosen by them
        flip=True,
        resized_crop=0.08,
        randaugment=9.0,
        erasing=0.25,
        erasing_noise=True,
    )
    return Recipe(f"timm:deit_{size}_patch16_224?drop_path_rate=0.1", settings, processes, workers=10)
