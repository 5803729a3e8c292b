"""Batches out of several domains."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch

from vitprune.data.batches import Batch, Batches
from vitprune.errors import DataError


class Balanced:
    """Batches with equally many images of every part, mixed.

    Training batches (`again`) make an epoch of as many images as all parts have; a part that ends is begun anew, in
    another order. Source: DomainBed (arXiv 2007.01434) draws as many images of each domain for every step. Others take
    every image once, and a part that ends is missing from then on.
    """

    def __init__(self, parts: Sequence[Batches], *, again: bool, seed: int = 0) -> None:
        """`parts`: whose batch sizes add up to that of the whole."""
        self.parts = tuple(parts)
        self.batch_size = sum(p.batch_size for p in self.parts)
        self._again, self._seed, self._epoch, self._done, self._world = again, seed, 0, 0, 1

    @property
    def size(self) -> int:
        """Images of all parts."""
        return sum(p.size for p in self.parts)

    def __len__(self) -> int:
        """Batches per pass."""
        if not self._again:
            return max(len(p) for p in self.parts)
        return max(1, self.size // (self.batch_size * self._world))

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Chooses the order and augmentation of the next passes, which leave out their first `done` batches."""
        self._epoch, self._done = epoch, done

    def set_shard(self, rank: int, world: int) -> None:
        """Restricts the passes to this process's share of every part. Raises DataError where that holds no image."""
        least = min(part.size for part in self.parts)
        if least < world:
            raise DataError(
                f"{world} processes need an image each of every domain, but one has {least}; launch fewer processes, "
                "or give it more images"
            )
        self._world = world
        for part in self.parts:
            part.set_shard(rank, world)

    def identity(self) -> str:
        """A digest of the parts'."""
        return _digest(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        streams = [self._stream(part) for part in self.parts]
        for step in range(self._done, len(self)):
            found = [b for b in (next(s, None) for s in streams) if b is not None]
            images, labels = torch.cat([b[0] for b in found]), torch.cat([b[1] for b in found])
            number = (self._seed * 1_000_003 + self._epoch) * 1_000_003 + step
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number)).to(labels.device)
            yield images[order], labels[order]

    def _stream(self, part: Batches) -> Iterator[Batch]:
        """The batches of a part from the first that is wanted on, pass after pass where it is begun anew."""
        passes = -(-len(self) // len(part)) if self._again else 1
        for turn in range(self._done // len(part), passes):
            part.set_epoch(self._epoch * passes + turn, max(0, self._done - turn * len(part)))
            yield from part


class Chained:
    """The batches of one part after the other."""

    def __init__(self, parts: Sequence[Batches]) -> None:
        self.parts = tuple(parts)
        self.batch_size = max(p.batch_size for p in self.parts)

    @property
    def size(self) -> int:
        """Images of all parts."""
        return sum(p.size for p in self.parts)

    def __len__(self) -> int:
        """Batches per pass."""
        return sum(len(p) for p in self.parts)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Chooses the order of the next passes, which leave out their first `done` batches."""
        for part in self.parts:
            part.set_epoch(epoch, min(done, len(part)))
            done -= min(done, len(part))

    def set_shard(self, rank: int, world: int) -> None:
        """Restricts the passes to this process's share of every part."""
        for part in self.parts:
            part.set_shard(rank, world)

    def identity(self) -> str:
        """A digest of the parts'."""
        return _digest(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            yield from part


def _digest(parts: Sequence[Batches]) -> str:
    return hashlib.sha256("|".join(p.identity() for p in parts).encode()).hexdigest()[:16]
