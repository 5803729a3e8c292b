"""What the tests of masks share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from matrix import traced
from vitprune.allocate import Target
from vitprune.data import TensorBatches
from vitprune.masks import MaskResult, MaskSettings, Pressure, train_masks
from vitprune.preprocessing import Preprocessing
from vitprune.recover import TrainSettings
from zoo import CASES

TINY = "timm/vit_tiny/fused"
ALL = ("mlp", "qk", "v", "heads", "residual")
SETTINGS = TrainSettings(epochs=2, lr=1e-3, batch_size=8, warmup_epochs=0.0, amp="no", keep="last", flip=False)


def pictures(
    count: int = 48, size: int = 32, shuffle: bool = True, batch_size: int = 8, classes: int = 4
) -> TensorBatches:
    """Noise with a bright quarter, which is the class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, size, size), generator=generator)
    for image, label in zip(images, labels, strict=True):
        row, column = size // 2 * (int(label) // 2), size // 2 * (int(label) % 2)
        image[:, row : row + size // 2, column : column + size // 2] += 100
    prep = Preprocessing((size, size), (0.5,) * 3, (0.5,) * 3, "bilinear", 3)
    return TensorBatches(images.to(torch.uint8), labels, prep, batch_size=batch_size, shuffle=shuffle, seed=0)


def search_settings(**more: object) -> MaskSettings:
    """A quick run."""
    given = {"pressure": Pressure(target=Target("macs", 0.6)), "mask_lr": 0.05, "kinds": ALL}
    base = {"search": replace(SETTINGS, epochs=5), "warmup": SETTINGS, "finetune": SETTINGS}
    return MaskSettings(**{**given, **base, **more})  # type: ignore[arg-type]


def run_masks(settings: MaskSettings, folder: Path | None = None, val: int = 16, **more: Any) -> MaskResult:
    """The result of the phases on the toy pictures."""
    case = CASES[TINY]
    ready = traced(case)
    return train_masks(
        ready.model, ready.graph, pictures(), pictures(val, shuffle=False), settings,
        example=case.example(2), checkpoint_dir=folder, **more,
    )  # fmt: skip
