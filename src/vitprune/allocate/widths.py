"""The sizes that a group may take: what hardware likes, and never below the minimum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vitprune.errors import TargetError
from vitprune.trace.graph import KINDS, Group

Minimum = int | Mapping[str, int] | None


def rounding_step(kind: str, size: int, round_to: int) -> int:
    """Units between two sizes of a group.

    Heads and blocks count one by one. Any other size of at least twice `round_to` goes in multiples of `round_to`. A
    smaller one (the q/k dims of a narrow head) takes the largest power of two, at most `round_to`, that divides it and
    leaves at least two sizes to choose from: 8 -> 4, 12 -> 4, 10 -> 2, 7 -> 1.
    """
    if kind in ("heads", "block"):
        return 1
    if size >= 2 * round_to:
        return round_to
    step = 1
    while step * 2 <= round_to and size % (step * 2) == 0 and size >= step * 4:
        step *= 2
    return step


def permitted_sizes(group: Group, round_to: int, minimum: int) -> npt.NDArray[np.int64]:
    """Ascending sizes that the group may take: multiples of its step from `minimum` on, and its dense size."""
    step = rounding_step(group.kind, group.size, round_to)
    first = -(-minimum // step) * step
    return np.append(np.arange(first, group.size, step), group.size)


def least(group: Group, minimum: Minimum) -> int:
    """The smallest size allowed: what the caller says for the kind, else 1 (a block may go entirely: 0)."""
    default = 0 if group.kind == "block" else 1
    if minimum is None:
        return default
    return minimum if isinstance(minimum, int) else minimum.get(group.kind, default)


def check_minimum(minimum: Minimum) -> None:
    """Pass for a minimum that makes sense. Raises TargetError for unknown kinds and values below 1 (blocks: 0)."""
    given = {"": minimum} if isinstance(minimum, int) else dict(minimum or {})
    for kind, value in given.items():
        if kind and kind not in KINDS:
            raise TargetError(f"minimum is given for {kind!r}, but kinds are {', '.join(KINDS)}")
        if value < (0 if kind == "block" else 1):
            raise TargetError(f"minimum{' for ' + kind if kind else ''} must be at least 1, but got {value}")
