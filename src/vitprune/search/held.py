"""Batches that are run again and again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LIMIT = 2 << 30  # bytes of images that are held in memory


def held(batches: Iterable[Any], limit: int = LIMIT) -> Iterable[Any]:
    """The (images, labels) batches as a list, so that files are decoded once; as they came where they need more.

    batches: can be run again.
    """
    found: list[Any] = []
    size = 0
    for batch in batches:
        found.append(batch)
        size += sum(part.numel() * part.element_size() for part in batch)
        if size > limit:
            return batches
    return found
