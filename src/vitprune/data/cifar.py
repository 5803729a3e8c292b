"""CIFAR-10 in its binary version: cifar10:DIR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vitprune.data.idx import Images
from vitprune.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue planes


def read_cifar10(folder: Path, split: str) -> Images:
    """The split "train" (50,000 images) or "test" (10,000), as (N, 3, 32, 32).

    Raises DataError when files are missing or not whole. The Python version is a set of pickles, and is not read.
    """
    for place in (folder, folder / "cifar-10-batches-bin"):
        if all((place / name).is_file() for name in FILES[split]):
            parts = [_records(place / name) for name in FILES[split]]
            records = np.concatenate(parts)
            images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
            return Images(images, torch.from_numpy(records[:, 0].astype(np.int64)))
    pickled = any((p / "data_batch_1").is_file() for p in (folder, folder / "cifar-10-batches-py"))
    found = "the Python version, whose files are pickles and are never read" if pickled else "no CIFAR-10"
    raise DataError(
        f"{folder} holds {found}; get the binary version, cifar-10-binary.tar.gz ({', '.join(FILES[split])}), "
        "and name the folder it is unpacked in"
    )


def _records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % RECORD:
        raise DataError(f"{path} is truncated: {raw.size} bytes are not a multiple of {RECORD}")
    records = raw.reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise DataError(f"{path} holds a label of {records[:, 0].max()}, but CIFAR-10 has labels 0 to 9")
    return records
