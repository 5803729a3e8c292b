"""A run's images: shared out between processes, and some of them to look at a model with."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from vitprune.data.batches import Batches
from vitprune.recover.runtime import Runtime
from vitprune.recover.settings import TrainError

MAPPED = 256  # images that maps between token features are fitted with


def share_out_(train: Batches, val: Batches, runtime: Runtime) -> None:
    """Leaves each process its part of both. Raises TrainError where there are fewer images than processes."""
    for name, split in (("training", train), ("validation", val)):
        if split.size < runtime.world:
            raise TrainError(
                f"{runtime.world} processes need an image each, but there are {split.size} {name} images; "
                "launch fewer processes, or give more images"
            )
        split.set_shard(runtime.rank, runtime.world)


def two_images(val: Batches, runtime: Runtime) -> Tensor:
    """(2, C, H, W) validation images on the device, or one where there is no other."""
    return next(iter(val))[0][:2].to(runtime.device)


def first_images(train: Batches, runtime: Runtime) -> Iterator[Tensor]:
    """Batches of training images as the first epoch has them, `MAPPED` images or a few more over all processes."""
    train.set_epoch(0)
    seen = 0
    for images, _ in train:
        yield images.to(runtime.device)
        seen += len(images) * runtime.world
        if seen >= MAPPED:
            return
