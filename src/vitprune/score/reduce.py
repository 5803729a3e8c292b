"""From the slices behind a unit to one number, and from one group's numbers to comparable ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from vitprune.arrays import Floats, Scores
from vitprune.score.types import ScoreError

Reduction = Literal["default", "sum", "mean", "max"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
Normalisation = Literal["none", "mean", "max", "sum", "standard"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)


def reduce_slices(parts: Sequence[Floats], how: str) -> Floats:
    """(lanes, size) out of one such array per slice (a layer that reads the unit, ...); "default" is their sum."""
    stacked = np.stack(parts)
    if how == "max":
        largest: Floats = stacked.max(axis=0)
        return largest
    total: Floats = stacked.sum(axis=0)
    return total / len(parts) if how == "mean" else total


def normalise(scores: Scores, how: str) -> Scores:
    """Every group's scores divided by their mean, largest or sum, or standardised; order within groups stays.

    "none" leaves scores as they are. Only ranking across groups ("global" and "isomorphic" scope) is changed by it.
    """
    if how == "none":
        return scores
    return {name: _one(values, how) for name, values in scores.items()}


def _one(values: Floats, how: str) -> Floats:
    if how == "standard":
        spread = values.std()
        found: Floats = (values - values.mean()) / (spread if spread > 0 else 1.0)
        return found
    by = float({"mean": values.mean(), "max": values.max(), "sum": values.sum()}[how])
    return values / by if by > 0 else values


def check_choices(reduction: str, normalisation: str) -> None:
    """Pass for known words. Raises ScoreError that lists them."""
    for title, word, known in (("reduction", reduction, REDUCTIONS), ("normalise", normalisation, NORMALISATIONS)):
        if word not in known:
            raise ScoreError(f"{title} must be one of {', '.join(known)}, but got {word!r}")
