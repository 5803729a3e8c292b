"""Fashion-MNIST and other data in IDX files, and where to find it."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitprune.errors import DataError

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """One split in memory."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64


def read_idx(path: Path) -> Tensor:
    """The array of unsigned bytes in an IDX file, gzipped or not. Raises DataError naming a file that is not whole."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or truncated ({error}); fetch it again") from error
    rank = raw[3] if len(raw) >= 4 else 0
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", rank, 4)) if len(raw) >= 4 + 4 * rank else ()
    if raw[:3] != b"\x00\x00\x08" or not shape or len(raw) != 4 + 4 * rank + int(np.prod(shape)):
        raise DataError(f"{path} is no whole IDX file of bytes: {len(raw)} bytes, header {raw[:4].hex()}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def read_split(folder: Path, split: str) -> Images:
    """The split "train" or "test" of a folder of IDX files. Raises DataError when files do not fit each other."""
    images_path, labels_path = (_file(folder, name) for name in FILES[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{images_path} of shape {tuple(images.shape)} and {labels_path} of {tuple(labels.shape)} do not fit"
        )
    return Images(images[:, None], labels.long())


def find_fashion_mnist(folder: str | None = None) -> Path:
    """The folder with the four IDX files: the one named, else Debian's, else the user's cache, else downloaded there.

    Raises DataError when there is none and it cannot be downloaded.
    """
    if folder:
        for place in (Path(folder), Path(folder) / "FashionMNIST" / "raw"):
            if _complete(place):
                return place
        raise DataError(
            f"no Fashion-MNIST in {folder}: it needs {', '.join(n + '(.gz)' for pair in FILES.values() for n in pair)}"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitprune" / "fashion-mnist"
    for place in (DEBIAN, cache, cache / "FashionMNIST" / "raw"):
        if _complete(place):
            return place
    return _download(cache)


def _download(cache: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), download=True)
    except Exception as error:
        raise DataError(
            f"Fashion-MNIST is neither in {DEBIAN} nor in {cache}, and could not be downloaded ({error}). "
            "Install Debian's package dataset-fashion-mnist, give the folder as fashion-mnist:DIR, "
            "or use the images that come along: fashion-mnist-sample"
        ) from error
    return cache / "FashionMNIST" / "raw"


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


def _complete(folder: Path) -> bool:
    return all(_file(folder, name).exists() for pair in FILES.values() for name in pair)
