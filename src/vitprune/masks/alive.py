"""Whether what the masks leave is still a model."""

from __future__ import annotations

import math

import numpy as np

from vitprune.masks.gates import Gates

COLLAPSED = 0.75  # share of masks that are closed, from which on a model counts as dead
CLOSED = 1 / 16  # share of its units up to which a mask counts as closed, where no target asks for so few


def collapsed(gates: Gates, asked: bool) -> str:
    """What the masks have closed of a model that is dead by now; "" for one that lives.

    Dead is a model of which three quarters of the masks are closed, those that keep as many units counted as one; or
    whose residual width is, all layers sharing its mask. Closed is a mask at its smallest size, or, unless `asked` by a
    target, at a sixteenth of its units. Kinds whose smallest size was given are where they were allowed to go, and do
    not count.
    """
    layout = gates.layout
    first = np.cumsum([0, *(v.lanes for v in layout.vectors)])[:-1]
    counts = gates.select.counts(gates.hard > 0.5).tolist()
    closed: dict[int, bool] = {}
    for v, cluster in zip(layout.vectors, layout.lane_cluster[first].tolist(), strict=True):
        if v.kind not in gates.floors:
            few = 0 if asked else int(CLOSED * v.size)
            closed[cluster] = counts[cluster] <= max(int(layout.smallest[cluster]), few)
            if v.kind == "residual" and v.alone and closed[cluster]:
                return f"{v.name} is down to {counts[cluster]} of {v.size} channels"
    share = sum(closed.values()) / max(1, len(closed))
    return f"{100 * share:.0f} % of the masks are closed" if share >= COLLAPSED else ""


def guesses(top1: float, classes: int, images: int) -> bool:
    """Whether a top-1 on so many images is what guessing gives, to three standard deviations."""
    chance = 1 / classes
    return top1 <= chance + 3 * math.sqrt(chance * (1 - chance) / images)
