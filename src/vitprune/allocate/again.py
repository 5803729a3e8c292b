"""Allocating again after a plan was carried out: what is gone stays gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.allocate.ranking import Cluster
from vitprune.arrays import Scores
from vitprune.plan import Plan


def known_scores(within: Plan, scores: Scores) -> dict[str, np.ndarray]:
    """`scores`, with zeros for the kept units of groups that were not scored, and -inf for all units that are gone."""
    found = {}
    for name, group in within.groups.items():
        values = np.full((group.lanes, group.size), -np.inf)
        for lane, kept in enumerate(group.kept):
            values[lane, list(kept)] = scores[name][lane, list(kept)] if name in scores else 0.0
        found[name] = values
    return found


def capped(clusters: Sequence[Cluster], within: Plan, scores: Scores) -> list[Cluster]:
    """The clusters with no size above those of `within`; with that alone where a group was not scored."""
    result: list[Cluster] = []
    for cluster in clusters:
        most = min(within.groups[g.name].kept_size for g in cluster.groups)
        fixed = any(g.name not in scores for g in cluster.groups)
        sizes = cluster.sizes[:0] if fixed else cluster.sizes[cluster.sizes < most]
        result.append(Cluster(cluster.groups, np.append(sizes, most)))
    return result
