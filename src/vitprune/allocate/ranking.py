"""Which rounding step of which group is worth most: one ordered list of steps, whatever the scope.

Groups that keep equal sizes form a cluster. A cluster grows from its smallest size to its dense size in steps; the
value of a step is the mean value of the units that it brings back. Since units come back best first, a cluster's steps
are in falling order, so any prefix of the list sorted by value is a consistent set of sizes. The scopes differ only in
how a unit's score becomes a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.arrays import Floats, Ints, Scores
from vitprune.trace.graph import Group


@dataclass(frozen=True, slots=True, eq=False)
class Cluster:
    """Groups that take the same size."""

    groups: tuple[Group, ...]
    sizes: Ints  # ascending permitted sizes, the last one dense


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """All growth steps of all clusters, most valuable first."""

    cluster: Ints  # (steps,) position of the cluster that grows
    value: Floats  # (steps,) falling


def rank_steps(
    clusters: Sequence[Cluster], scores: Scores, scope: str, unit_costs: Mapping[str, float] | None = None
) -> Steps:
    """The steps of all clusters, ordered by value; equal values: by raw score, then by position.

    Scopes: "global" compares scores as they are; "isomorphic" replaces a score by its rank among the units of the same
    kind, so every kind loses the same share; "local" by the rank within the group, so every group loses the same share
    (groups of one unit, such as whole blocks, are ranked within their kind, as there is no share of one unit);
    "per-cost" divides what a cluster loses with a unit, the sum over its groups and lanes, by what the unit costs.

    unit_costs: for "per-cost", see there; by the name of a cluster's first group.

    Source: isomorphic ranking after Fang et al., arXiv 2407.04616, with equal ranks instead of thresholds per topology.
    """
    slots = {g.name: slot_scores(scores[g.name]) for c in clusters for g in c.groups}
    by_kind = _kind_ranks(clusters, slots)
    owners: list[Ints] = []
    values: list[Floats] = []
    raws: list[Floats] = []
    for position, cluster in enumerate(clusters):
        raw = np.mean([slots[g.name] for g in cluster.groups], axis=0)
        value = raw
        if scope == "per-cost":
            assert unit_costs is not None
            value = cluster_loss(cluster, slots) / unit_costs[cluster.groups[0].name]
        elif scope != "global":
            size = len(raw)
            value = np.mean([by_kind[g.name] for g in cluster.groups], axis=0)
            if scope == "local" and size > 1:
                value = 1.0 - (np.arange(size) + 0.5) / size
        owners.append(np.full(len(cluster.sizes) - 1, position, dtype=np.int64))
        values.append(_step_means(value, cluster.sizes))
        raws.append(_step_means(raw, cluster.sizes))
    if not clusters:
        return Steps(np.zeros(0, dtype=np.int64), np.zeros(0))
    owner, value, raw = np.concatenate(owners), np.concatenate(values), np.concatenate(raws)
    order = np.lexsort((np.arange(len(owner)), -raw, -value))
    return Steps(owner[order], value[order])


def cluster_loss(cluster: Cluster, slots: Mapping[str, Floats]) -> Floats:
    """(size,) falling: the sum of the scores of all units that a cluster loses with its r-th best."""
    total: Floats = np.sum([group.lanes * slots[group.name] for group in cluster.groups], axis=0)
    return total


def slot_scores(scores: Floats) -> Floats:
    """(size,) falling: the mean over lanes of each lane's r-th best score."""
    ranked: Floats = -np.sort(-scores, axis=1)
    mean: Floats = ranked.mean(axis=0)
    return mean


def top_units(scores: Floats, size: int) -> tuple[tuple[int, ...], ...]:
    """Per lane the `size` best units, ascending; of equal ones the first."""
    best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :size], axis=1)
    return tuple(tuple(row) for row in best.tolist())


def _kind_ranks(clusters: Sequence[Cluster], slots: dict[str, Floats]) -> dict[str, Floats]:
    by_kind: dict[str, list[str]] = {}
    for cluster in clusters:
        for group in cluster.groups:
            by_kind.setdefault(group.kind, []).append(group.name)
    ranks: dict[str, Floats] = {}
    for names in by_kind.values():
        together = np.concatenate([slots[n] for n in names])
        order = np.argsort(-together, kind="stable")  # stable: within a group the better slot stays first
        rank = np.empty(len(together))
        rank[order] = 1.0 - (np.arange(len(together)) + 0.5) / len(together)
        for name, part in zip(names, np.split(rank, np.cumsum([len(slots[n]) for n in names])[:-1]), strict=True):
            ranks[name] = part
    return ranks


def _step_means(values: Floats, sizes: Ints) -> Floats:
    total = np.concatenate([[0.0], np.cumsum(values)])
    means: Floats = np.diff(total[sizes]) / np.diff(sizes)
    return np.minimum.accumulate(means) if len(means) else means  # rounding of the sums must not break the order
