"""Thresholds: the gates of the smallest modulus are closed, at once or in several steps of the training."""

from __future__ import annotations

from collections.abc import Callable

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


def closing_at(step: int, steps: int, closings: int) -> int:
    """Which of `closings` thresholds falls at the end of `step`, 1..closings - 1; 0 if none.

    The last one comes after the training, and is not counted: with one closing there is none here.
    """
    now, before = (step + 1) * closings // steps, step * closings // steps
    return now if before < now < closings else 0
