"""Thresholds: the gates of the smallest modulus are closed, at once or in several steps of the training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitprune.masks.gates import Gates


def close_share(gates: Gates, share: float) -> None:
    """Closes the share 0..1 of all gates that have the smallest importance; lanes keep equal counts, upwards."""
    theta = gates.relaxation.importance(gates.alpha.detach()).sort().values
    gates.threshold = float(theta[int(share * len(theta))]) * (1 - 1e-6)
    gates.refresh()


def close_to(gates: Gates, cost: Callable[[], float], budget: float) -> None:
    """Closes as few of the smallest gates as bring `cost()`, of the gates of then, to the budget."""
    low, high = 0, len(gates.alpha) - 1  # numbers of gates: the cost falls, if at all, with every one that is closed
    while low < high:
        middle = (low + high) // 2
        close_share(gates, middle / len(gates.alpha))
        low, high = (low, middle) if cost() <= budget else (middle + 1, high)
    close_share(gates, low / len(gates.alpha))


def sizes_at(gates: Gates, cost: Callable[[], float], budget: float) -> None:
    """Fixes the counts: those of as few of the least important units closed as keep `cost()` within the budget.

    Counts that are there already stay, where they are within it. Then sizes grow by one permitted step after the other,
    in turns, as long as one can.
    """
    theta = gates.relaxation.importance(gates.alpha.detach())
    place = theta.argsort(stable=True).argsort()  # instead of the importance: many may be equal

    def within(counts: Tensor) -> bool:
        gates.counts = counts
        gates.refresh()
        return cost() <= budget

    counts = gates.counts
    if counts is None or not within(counts):
        low, high = 0, len(place) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if within(gates.select.counts(place >= middle)) else (middle + 1, high)
        counts = gates.select.counts(place >= low)
    before = None
    while before is None or not torch.equal(before, counts):
        before = counts
        for cluster in range(len(counts)):
            further = counts.clone()
            wanted = (counts[cluster] + 1).clamp_max(gates.select.permitted.shape[1] - 1)
            further[cluster] = gates.select.permitted[cluster, wanted]
            counts = further if within(further) else counts
    within(counts)


def closing_at(step: int, steps: int, closings: int) -> int:
    """Which of `closings` thresholds falls at the end of `step`, 1..closings - 1; 0 if none.

    The last one comes after the training, and is not counted: with one closing there is none here.
    """
    now, before = (step + 1) * closings // steps, step * closings // steps
    return now if before < now < closings else 0
