"""`vitprune demo`: the whole way on the shipped model and real images, without network."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from vitprune import models
from vitprune.allocate.target import Target
from vitprune.pipeline.api import load
from vitprune.pipeline.prune_run import PruneResult, run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.progress import Progress
from vitprune.recover import TrainSettings
from vitprune.report import draw_widths, width_rows
from vitprune.store import read

MODEL, DATA, TARGET = "shipped:fmnist-vit", "fashion-mnist-sample", "macs=0.25"
TRAINING = TrainSettings(
    epochs=4, lr=5e-4, batch_size=64, warmup_epochs=0.5, label_smoothing=0.0, distill_weight=1.0, crop_padding=2
)
PICTURE = "widths.png"


def run_demo(out: Path, *, device: str, force: bool, epochs: int, command: str = "", progress: Progress) -> PruneResult:
    """Prunes three quarters of the shipped model's MACs, fine-tunes it on the shipped images, saves it, loads it again.

    The picture of the widths lies beside the saved folder, as `NAME-widths.png`.

    Raises a VitpruneError that says what is wrong.
    """
    start = time.monotonic()
    values = TRAINING.to_json() | {"epochs": epochs}
    result = run_prune(
        MODEL,
        DataSettings(DATA),
        PruneSettings(Target.parse(TARGET)),
        TrainSettings.from_json(values),
        out,
        device=device,
        force=force,
        resume=False,
        command=command,
        progress=progress,
    )
    again = load(out)
    images = models.example(read(out).preprocessing, batch=4)
    with torch.no_grad():
        shape = tuple(models.logits(again(images)).shape)
    progress.line(f"loaded again from {out}: {type(again).__module__}.{type(again).__qualname__}, output {shape}")
    picture = out.absolute().with_name(f"{out.absolute().name}-{PICTURE}")
    got = result.plan.obtained["macs"]["ratio"]
    draw_widths(width_rows(result.plan), picture, f"{MODEL}, asked {TARGET}, obtained {got:.4f}")
    progress.line(f"picture of the widths: {picture}")
    progress.line(f"took {time.monotonic() - start:.0f} s")
    return result
