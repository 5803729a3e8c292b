"""One score out of the scores that a method gives on the images of each domain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitprune.arrays import Floats, Scores
from vitprune.score.registry import lookup
from vitprune.score.types import ScoreError

Combine = Callable[[Floats], Floats]  # (domains, ...) -> (...)


def _steady(values: Floats) -> Floats:
    found: Floats = values.mean(axis=0) - values.std(axis=0)
    return found


WAYS: Mapping[str, Combine | None] = {
    "pooled": None,  # the method sees all domains' images together
    "mean": lambda values: values.mean(axis=0),
    "worst": lambda values: values.max(axis=0),  # what a unit's loss costs where it costs most
    "shared": lambda values: values.min(axis=0),  # what it costs everywhere at least
    "steady": _steady,  # mean less standard deviation: units that matter in some domains alone go first
}


def check_way(way: str, method: str) -> None:
    """Pass when the scores of `method` can be combined that way.

    Raises ScoreError for an unknown word, and for scores that see no images and so have nothing to combine.
    """
    if way not in WAYS:
        raise ScoreError(f"scores over domains must be one of {', '.join(WAYS)}, but got {way!r}")
    if WAYS[way] is not None and "data" not in lookup(method).info.needs:
        raise ScoreError(
            f"method {method!r} sees no images, so its scores are the same for all domains, but got {way!r} over "
            "domains; give pooled, or a method that needs data"
        )


def parts_of(batches: Any) -> Sequence[Iterable[Any]]:
    """The batches of each domain. Raises ScoreError for batches that do not come by domain."""
    parts: Sequence[Iterable[Any]] = getattr(batches, "parts", ())
    if len(parts) < 2:
        raise ScoreError(
            f"scores over domains need the calibration images of two domains or more, but got {len(parts)}; give "
            "batches with `parts`, such as those of open_domains, or pooled"
        )
    return parts


def combined(found: Sequence[Scores], way: str, names: Collection[str]) -> Scores:
    """Group name -> (lanes, size): the domains' scores, each divided by its mean over all units, combined.

    names: the groups whose scores count; the others may have any.

    The division keeps a domain whose loss or activations are larger from deciding alone.

    Source: none for pruning; the worst case over domains is that of group DRO (arXiv 1911.08731), the penalty on what
    differs between domains that of V-REx (arXiv 2003.00688), with scores in the place of losses.
    """
    how = WAYS[way]
    assert how is not None, way
    means = [_mean([np.abs(one[name]).ravel() for name in names]) for one in found]
    even = [{name: values / mean for name, values in one.items()} for one, mean in zip(found, means, strict=True)]
    return {name: how(np.stack([one[name] for one in even])) for name in even[0]}


def _mean(values: Sequence[Floats]) -> float:
    mean = float(np.concatenate(values).mean()) if values else 0.0
    return mean if mean > 0 else 1.0
