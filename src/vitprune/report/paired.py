"""Means, spreads and paired differences of accuracies, with intervals."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from vitprune.arrays import Floats
from vitprune.normal import Z95


@dataclass(frozen=True, slots=True)
class Hits:
    """Which of the test images a model was right about."""

    images: str  # equal texts: the same images in the same order
    n: int
    right: bytes  # a bit per image, the first one the highest of its byte, as `numpy.packbits` has them

    def array(self) -> Floats:
        """(n,): 1 where the model was right, else 0."""
        return np.unpackbits(np.frombuffer(self.right, np.uint8), count=self.n).astype(np.float64)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the bits in base64."""
        return {"images": self.images, "n": self.n, "right": base64.b64encode(self.right).decode()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Hits:
        """The value that `to_json` wrote."""
        return cls(fields["images"], fields["n"], base64.b64decode(fields["right"]))


@dataclass(frozen=True, slots=True)
class Spread:
    """Several runs' accuracies."""

    n: int
    mean: float
    sd: float | None  # of the sample (n - 1); None for one run


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference, its standard error and the ends of its 95 % interval."""

    n: int  # pairs
    mean: float
    se: float | None = None  # None, as the ends, for one pair
    low: float | None = None
    high: float | None = None
    p: float | None = None  # of an exact test that there is no difference, where there is one


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of one value or more."""
    return Spread(len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def by_seed(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The mean of `ours` minus `theirs` over the seeds that both have, by Student's t; None where there is none."""
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not both:
        return None
    found = spread(both)
    if found.sd is None:
        return Interval(1, found.mean)
    se = found.sd / math.sqrt(found.n)
    half = float(stats.t.ppf(0.975, found.n - 1)) * se
    return Interval(found.n, found.mean, se, found.mean - half, found.mean + half)


def by_image(pairs: Sequence[tuple[Hits, Hits]]) -> Interval | None:
    """The mean difference of top-1 (0..1) of these pairs of models, one per seed, and how far the images decide it.

    None without pairs, or where the models of a pair were tried on unlike images. Where seeds have the same images,
    each image counts by its mean difference; other images are counted as drawn anew. The interval is of these
    models, not of what other seeds would give. p: McNemar's exact test, of one pair only.

    Source: A. Agresti and Y. Min, Statistics in Medicine 24 (2005): the interval of one pair is Wald's after an image
    more of either kind of difference with half weight, and one without. Deviation: several pairs likewise.
    """
    if not pairs or any((a.images, a.n) != (b.images, b.n) for a, b in pairs):
        return None
    groups: dict[str, list[Floats]] = {}
    for a, b in pairs:
        groups.setdefault(a.images, []).append(a.array() - b.array())
    middle, variance = 0.0, 0.0
    for part in groups.values():
        differences = np.mean(part, axis=0)
        n, share = len(differences) + 2, len(part) / len(pairs)
        mean = float(differences.sum()) / n
        middle += share * mean
        variance += share**2 * (float((differences**2).sum() + 1) / n - mean**2) / n
    together = float(np.mean([np.mean(d) for part in groups.values() for d in part]))
    se = math.sqrt(variance)
    return Interval(
        len(pairs),
        together,
        se,
        middle - Z95 * se,
        middle + Z95 * se,
        mcnemar(*pairs[0]) if len(pairs) == 1 else None,
    )


def mcnemar(ours: Hits, theirs: Hits) -> float:
    """The two-sided p of as unequal a split of the images that one model alone is right about, were it a coin's."""
    difference = ours.array() - theirs.array()
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
