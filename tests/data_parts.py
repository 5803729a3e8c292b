"""What the tests of data sets share."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vitprune.data import AugmentSettings, Batches
from vitprune.data import idx as idx_module
from vitprune.preprocessing import Preprocessing

GREY = Preprocessing((28, 28), (0.25,), (0.5,), "bilinear", 1)
RGB = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 3)
AUGMENT = AugmentSettings(flip=True, crop_padding=4, erasing=0.5)


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of bytes."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, train: int = 60, test: int = 20) -> None:
    """A tiny set in Fashion-MNIST's four files; every image is filled with 10 times its label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(labels * 10, 28 * 28).reshape(count, 28, 28)
        for name, array in zip(idx_module.FILES[split], (images, labels), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


def collect(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of one pass."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def write_folder(root: Path, mode: str = "RGB", per_class: int = 6, sub: str = "") -> Path:
    """An image folder of two classes, cat (dark) and dog (bright)."""
    for label, name in enumerate(("cat", "dog")):
        (root / sub / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            level = 40 + 150 * label + i
            colour = level if mode == "L" else (level, level // 2, 0)
            Image.new(mode, (20, 24), colour).save(root / sub / name / f"{i}.png")
    return root
