"""Seeded, class-balanced choices of image indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitprune.errors import DataError

Indices = npt.NDArray[np.int64]


def stratified_split(labels: Sequence[int] | Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(rest, chosen): per class about `fraction` of the images are chosen, at least one of any class with two or more.

    Both are ascending. Raises DataError unless 0 < fraction < 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the validation fraction must lie between 0 and 1, but got {fraction}")
    labels = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    chosen: list[Indices] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        chosen.append(members[:count])
    taken = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), taken), taken


def balanced_subset(labels: Sequence[int] | Indices, count: int | None, seed: int) -> Indices:
    """At most `count` indices, ascending, drawn in turn from every class; all of them when `count` is None."""
    labels = np.asarray(labels, dtype=np.int64)
    if count is None or count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    if count < 1:
        raise DataError(f"the limit must be at least 1 image, but got {count}")
    rng = np.random.default_rng(seed)
    turn = np.empty(len(labels), np.int64)  # how many of its class come before an image
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        turn[members] = np.arange(len(members))
    order = np.lexsort((rng.permutation(len(labels)), turn))
    return np.sort(order[:count])
