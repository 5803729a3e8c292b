"""What the tests of masks share."""

from __future__ import annotations

import torch

from vitprune.data import TensorBatches
from vitprune.preprocessing import Preprocessing
from vitprune.recover import TrainSettings

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
