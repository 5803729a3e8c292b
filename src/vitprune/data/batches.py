"""Seeded batches: what training and evaluation iterate over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vitprune.data.augment import AugmentSettings, erase, luma, move
from vitprune.preprocessing import Preprocessing

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float32 normalised, (B,) int64 class indices


class Batches(Protocol):
    """An iterable over batches that gives the same batches for the same seed and epoch."""

    batch_size: int

    @property
    def size(self) -> int:
        """Images of the whole split, over all processes."""

    def __len__(self) -> int:
        """Batches that one pass gives in this process."""

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Chooses the order and the augmentation of the next passes, which leave out their first `done` batches."""

    def set_shard(self, rank: int, world: int) -> None:
        """This process takes every `world`-th image from `rank` on; all processes get equally many batches."""

    def identity(self) -> str:
        """A text that, among splits of one DATA argument, only the same images in the same order have."""


@runtime_checkable
class Album(Protocol):
    """A split whose images can be looked at one by one."""

    def picked(self, places: Sequence[int]) -> Tensor:
        """(n, C, H, W) float32 normalised: the images at these places of an unshuffled pass, not augmented."""


@dataclass(frozen=True, slots=True)
class Data:
    """The splits of one data set, ready for one model."""

    train: Batches
    val: Batches  # split off the training images, or the set's own validation images
    test: Batches | None  # never used for a choice
    classes: tuple[str, ...]  # class names, in the order of the indices
    notes: tuple[str, ...] = ()  # what was converted or assumed
    calibration: Batches | None = None  # some training images as they are, without augmentation, in a fixed order


@dataclass(slots=True)
class Order:
    """Which images a pass takes, in which order: a function of (seed, epoch, shard) alone."""

    size: int
    batch_size: int
    shuffle: bool
    seed: int
    epoch: int = 0
    rank: int = 0
    world: int = 1
    done: int = 0  # batches of a pass that are left out, as they were had before

    def indices(self) -> Tensor:
        """(n,) int64: this process's image indices for the current epoch."""
        order = torch.arange(self.size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator)
        if self.world > 1:
            even = self.size // self.world * self.world if self.shuffle else self.size
            order = order[:even][self.rank :: self.world]
        return order[: self.batches() * self.batch_size]

    def batches(self) -> int:
        """Batches per pass; shuffled passes drop a last, smaller batch unless it is the only one."""
        per_process = self.size // self.world if self.shuffle else -(-(self.size - self.rank) // self.world)
        if self.shuffle and per_process >= self.batch_size:
            return per_process // self.batch_size
        return -(-per_process // self.batch_size)

    def generator(self) -> torch.Generator:
        """A fresh generator for the augmentation of the current epoch in this process."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 4099 + self.rank + 1)


class TensorBatches:
    """Whole batches cut from images in memory, converted and augmented on the device."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        augment: AugmentSettings | None = None,
        device: str = "cpu",
    ) -> None:
        """`images`: (N, C, H, W) uint8 with C equal to or broadcast to the model's channels; `labels`: (N,) int64."""
        assert images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(labels)
        self.batch_size = batch_size
        self._images, self._labels = images.to(device), labels.to(device)
        self._preprocessing, self._augment = preprocessing, augment
        self._order = Order(len(images), batch_size, shuffle, seed)
        shape = (1, preprocessing.channels, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=device).view(shape) * 255
        self._scale = 1 / (torch.tensor(preprocessing.std, device=device).view(shape) * 255)

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
        """A digest of images and labels."""
        found = hashlib.sha256(self._images.cpu().numpy().tobytes())
        found.update(self._labels.cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    def picked(self, places: Sequence[int]) -> Tensor:
        """(n, C, H, W): single images."""
        chosen = torch.as_tensor(places, dtype=torch.int64, device=self._images.device)
        return (self._sized(self._images[chosen]) - self._mean) * self._scale

    def __iter__(self) -> Iterator[Batch]:
        generator = self._order.generator()
        for i, chunk in enumerate(torch.split(self._order.indices().to(self._images.device), self.batch_size)):
            images = self._sized(self._images[chunk])
            if self._augment is not None:
                images = move(images, self._augment, generator)
            images = (images - self._mean) * self._scale
            if self._augment is not None and self._augment.erasing:
                images = erase(images, self._augment.erasing, generator, noise=self._augment.erasing_noise)
            if i >= self._order.done:  # batches that are left out are made all the same: they move the generator on
                yield images, self._labels[chunk]

    def _sized(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, channels, height, width) float32 in 0..255."""
        x = images.float()
        if x.shape[1] != self._preprocessing.channels:
            x = to_channels(x, self._preprocessing.channels)
        if tuple(x.shape[-2:]) != self._preprocessing.size:
            x = resize(x, self._preprocessing)
        return x


def to_channels(x: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) -> (B, channels, H, W): one channel is repeated, three become their luma."""
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    assert x.shape[1] == 3 and channels == 1
    return luma(x)


def resize(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, C, H, W) in 0..255 resized to the model's size, antialiased."""
    mode = {"lanczos": "bicubic"}.get(preprocessing.interpolation, preprocessing.interpolation)
    if mode == "nearest":
        return torch.nn.functional.interpolate(x, preprocessing.size, mode=mode)
    return torch.nn.functional.interpolate(x, preprocessing.size, mode=mode, antialias=True).clamp_(0, 255)
