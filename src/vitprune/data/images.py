"""Image files and other single images through a DataLoader: decoding, transforms, errors that name the file."""

from __future__ import annotations

import hashlib
import math
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitprune.data.augment import AugmentSettings
from vitprune.data.batches import Batch, Order
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing

GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
Transform = Callable[[Image.Image], Tensor]


class Store(Protocol):
    """Images and labels by index."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of every image."""

    def open(self, index: int) -> Image.Image:
        """The decoded image. Raises DataError naming what cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Files:
    """Image files on disk."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def open(self, index: int) -> Image.Image:
        """The decoded image of a file."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except (OSError, SyntaxError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} is no whole image ({error}); fetch it again or remove it") from error


def make_transform(preprocessing: Preprocessing, augment: AugmentSettings | None) -> Transform:
    """PIL image -> (channels, height, width) float32 normalised, by torchvision's transforms."""
    from torchvision.transforms import v2

    height, width = preprocessing.size
    mode = v2.InterpolationMode(preprocessing.interpolation)
    scaled = (math.ceil(height / preprocessing.crop_pct), math.ceil(width / preprocessing.crop_pct))
    steps: list[Any] = []
    if augment is not None and augment.resized_crop:
        steps.append(v2.RandomResizedCrop((height, width), (augment.resized_crop, 1.0), interpolation=mode))
    elif preprocessing.crop_mode == "squash":
        steps += [v2.Resize(scaled, mode), v2.CenterCrop((height, width))]
    else:
        steps += [v2.Resize(max(scaled) if height == width else scaled, mode), v2.CenterCrop((height, width))]
    if augment is not None:
        if augment.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augment.crop_padding:
            padding = max(1, round(augment.crop_padding * width / 32))
            steps.append(v2.RandomCrop((height, width), padding))
        if augment.color_jitter or augment.hue:
            steps.append(v2.ColorJitter(*(augment.color_jitter,) * 3, augment.hue))
        if augment.grayscale:
            steps.append(v2.RandomGrayscale(augment.grayscale))
        if augment.randaugment:
            steps.append(_randaugment(augment.randaugment, preprocessing))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize(list(preprocessing.mean), list(preprocessing.std)))
    if augment is not None and augment.erasing:
        fill: Any = "random" if augment.erasing_noise else 0.0
        steps.append(v2.RandomErasing(augment.erasing, (0.02, 0.25), value=fill))
    steps.append(v2.ToPureTensor())
    transform: Transform = v2.Compose(steps)
    return transform


def _randaugment(magnitude: float, preprocessing: Preprocessing) -> Callable[[Image.Image], Image.Image]:
    """Two random operations per image. Source: arXiv 1909.13719, as timm does them ("rand-m9-mstd0.5-inc1")."""
    from timm.data import auto_augment

    mean = [min(255, round(255 * value)) for value in preprocessing.mean]
    size = min(preprocessing.size)
    how = {"translate_const": int(0.45 * size), "img_mean": tuple(mean) if len(mean) == 3 else mean[0]}
    made: Any = auto_augment.rand_augment_transform(f"rand-m{magnitude:g}-mstd0.5-inc1", how)
    for op in made.ops:
        if op.name.startswith("Posterize"):  # timm would keep 0 bits at the largest magnitudes, which Pillow refuses
            op.level_fn = partial(_one_bit_or_more, op.level_fn)
    transform: Callable[[Image.Image], Image.Image] = made
    return transform


def _one_bit_or_more(level: Callable[..., tuple[int, ...]], *args: Any) -> tuple[int, ...]:
    return tuple(max(1, bits) for bits in level(*args))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators that transforms draw from (torch's, Python's and numpy's) start at `seed`, for a while."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _leave_interrupts(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers too; the main process decides


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Images by (seed, place in the split): the draws of an image depend on these alone, not on the worker."""

    def __init__(self, store: Store, indices: Sequence[int], channels: int, transform: Transform) -> None:
        self._store, self._indices = store, indices
        self._mode, self._transform = ("L" if channels == 1 else "RGB"), transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        seed, place = key
        index = int(self._indices[place])
        image = self._store.open(index).convert(self._mode)
        with _seeded(seed * 2_000_003 + place):
            return self._transform(image), int(self._store.labels[index])


class _Keys(Sampler[Any]):
    """Batches of (seed of the epoch, place) in the order of the epoch."""

    def __init__(self, order: Order) -> None:
        self._order = order

    def __len__(self) -> int:
        return self._order.batches()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        seed = self._order.seed * 1_000_003 + self._order.epoch
        for chunk in torch.split(self._order.indices(), self._order.batch_size)[self._order.done :]:
            yield [(seed, int(place)) for place in chunk]


class LoaderBatches:
    """Batches of single images, decoded and transformed in worker processes."""

    def __init__(
        self,
        store: Store,
        indices: Sequence[int],
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        augment: AugmentSettings | None = None,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """`indices`: the images of the store that belong to this split."""
        self.batch_size = batch_size
        self._order = Order(len(indices), batch_size, shuffle, seed)
        self._store, self._indices, self._preprocessing = store, indices, preprocessing
        dataset = _Decoded(store, indices, preprocessing.channels, make_transform(preprocessing, augment))
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            dataset,
            batch_sampler=_Keys(self._order),
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=False,
            worker_init_fn=_leave_interrupts,
        )

    @property
    def size(self) -> int:
        """Images of the split."""
        return self._order.size

    def __len__(self) -> int:
        """Batches per pass."""
        return self._order.batches()

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Chooses the order and augmentation of the next passes, which leave out their first `done` batches."""
        self._order.epoch, self._order.done = epoch, done

    def set_shard(self, rank: int, world: int) -> None:
        """Restricts the passes to this process's share."""
        self._order.rank, self._order.world = rank, world

    def identity(self) -> str:
        """A digest of the images' places in the store, and of all labels there."""
        places = np.asarray([*self._indices, -1, *self._store.labels], dtype=np.int64)
        return hashlib.sha256(places.tobytes()).hexdigest()[:16]

    def picked(self, places: Sequence[int]) -> Tensor:
        """(n, C, H, W): single images."""
        still = make_transform(self._preprocessing, None)
        plain = _Decoded(self._store, self._indices, self._preprocessing.channels, still)
        return torch.stack([plain[0, int(place)][0] for place in places])

    def __iter__(self) -> Iterator[Batch]:
        try:
            for images, labels in self._loader:
                yield images, labels.long()
        except DataError as error:  # out of a worker it comes with the worker's whole traceback as its text
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ", 1)[-1]) from None


def only_grey(store: Store, looked_at: Sequence[int]) -> bool:
    """Whether every one of these images has one channel."""
    return all(store.open(int(i)).mode in GREY_MODES for i in looked_at)
