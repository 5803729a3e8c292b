"""The sizes that come closest to a budget from below, exactly costed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitprune.allocate.ranking import Cluster, Steps
from vitprune.arrays import Floats, Ints
from vitprune.trace.polynomial import Polynomial


class Cost:
    """A polynomial made fast for repeated evaluation at cluster sizes."""

    def __init__(self, polynomial: Polynomial, clusters: Sequence[Cluster], fixed: Mapping[str, int]) -> None:
        place = {g.name: i for i, c in enumerate(clusters) for g in c.groups}
        by_degree: dict[int, tuple[list[float], list[list[int]]]] = {}
        for names, coefficient in polynomial.terms:
            value = float(coefficient)
            for name in names:
                value *= 1 if name in place else fixed[name]
            variables = [place[n] for n in names if n in place]
            coefficients, indices = by_degree.setdefault(len(variables), ([], []))
            coefficients.append(value)
            indices.append(variables)
        self._parts: list[tuple[Floats, Ints]] = [
            (np.array(values), np.array(indices, dtype=np.int64).reshape(len(values), degree))
            for degree, (values, indices) in by_degree.items()
        ]

    def __call__(self, sizes: Ints) -> float:
        """The cost at these sizes (one per cluster); exact up to 2^53."""
        return float(sum((values * sizes[indices].prod(axis=1)).sum() for values, indices in self._parts))


def sizes_after(clusters: Sequence[Cluster], steps: Steps, taken: int) -> Ints:
    """Every cluster's size after the first `taken` steps."""
    counts = np.bincount(steps.cluster[:taken], minlength=len(clusters))
    return np.array([c.sizes[n] for c, n in zip(clusters, counts, strict=True)], dtype=np.int64)


def fit_budget(clusters: Sequence[Cluster], steps: Steps, cost: Callable[[Ints], float], budget: float) -> Ints | None:
    """Every cluster's size so that the cost is at most `budget`, or None when the smallest sizes cost more.

    First the longest prefix of the steps that fits (the threshold), by bisection. Then the remaining steps are tried in
    order, and those that still fit are taken; a cluster whose next step does not fit is closed. So what is left of the
    budget is less than any rounding step.

    A larger budget never gives a cheaper model: follow both budgets through the same list of steps up to the first step
    that only the larger one takes; from there on it costs more than the smaller budget.
    """
    limit = budget * (1 + 1e-12)
    if cost(sizes_after(clusters, steps, 0)) > limit:
        return None
    low, high = 0, len(steps.cluster)  # invariant: `low` steps fit; more than `high` do not
    while low < high:
        middle = (low + high + 1) // 2
        if cost(sizes_after(clusters, steps, middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    sizes = sizes_after(clusters, steps, low)
    at = np.bincount(steps.cluster[:low], minlength=len(clusters))
    open_clusters = {i for i, c in enumerate(clusters) if at[i] < len(c.sizes) - 1}
    for position in steps.cluster[low:].tolist():
        if not open_clusters:
            break
        if position not in open_clusters:
            continue
        tried = sizes.copy()
        tried[position] = clusters[position].sizes[at[position] + 1]
        if cost(tried) > limit:
            open_clusters.discard(position)
            continue
        sizes, at[position] = tried, at[position] + 1
        if at[position] == len(clusters[position].sizes) - 1:
            open_clusters.discard(position)
    return sizes
