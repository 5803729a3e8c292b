"""What keeping so many units is worth, in a currency that time can be traded for.

A threshold on step values, which is how budgets of MACs are met, maximises the sum of value times cost over all steps
that are kept: it takes the steps of the highest value per cost. So the worth of a step is here its value times the time
that it would take if time fell in proportion to size. Where it does, every scope gives the sizes that its threshold
would give; where it does not, sizes that are cheap for what they hold are preferred. The scope "per-cost" has losses
that add up over all groups: there the worth of a size is what it keeps of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitprune.allocate.allocate import Choices
from vitprune.allocate.ranking import cluster_loss, slot_scores
from vitprune.arrays import Floats
from vitprune.latency.table import Table

LEAST = 1e-5  # share of the dense model's time that a group counts for at least, where the table sees no difference
TIE = 1e-7  # of the largest value: what a step's place in the ranking adds, so that equal values go by raw score


def kept_values(space: Choices) -> list[Floats]:
    """Per cluster and permitted size the mean value of a unit that is kept, times the share of units kept.

    Units below the smallest size count as much as those of the first step. In the scope "per-cost": the sum of the
    scores that are kept, as a share of the whole model's.
    """
    if adds_up(space):
        slots = {g.name: slot_scores(space.scores[g.name]) for c in space.clusters for g in c.groups}
        sums = [np.concatenate([[0.0], np.cumsum(cluster_loss(c, slots))])[c.sizes] for c in space.clusters]
        whole = sum(float(s[-1]) for s in sums) or 1.0
        return [s / whole for s in sums]
    steps = space.steps
    count = max(1, len(steps.value))
    most = float(np.abs(steps.value).max()) if len(steps.value) else 1.0
    ranked = steps.value + TIE * most * (1.0 - np.arange(len(steps.value)) / count)
    found: list[Floats] = []
    for position, cluster in enumerate(space.clusters):
        mine = ranked[steps.cluster == position]
        first = mine[0] if len(mine) else 1.0
        gains = np.concatenate([[first * cluster.sizes[0]], mine * np.diff(cluster.sizes)])
        found.append(np.cumsum(gains) / cluster.sizes[-1])
    return found


def adds_up(space: Choices) -> bool:
    """Whether what is kept of the scores is itself what is to be maximised."""
    return bool(space.settings["scope"] == "per-cost")


def branch_worth(
    table: Table, number: int, space: Choices, kept: Sequence[Floats], means: float, *, sums: bool = False
) -> tuple[Floats, Floats]:
    """(worth, of every choice of a branch's own axes; worth of every shared choice in this branch), both flat.

    kept: see `kept_values`; clusters that move together count at the sizes that they have there.
    A branch that can be removed has one choice more, the last: worth nothing. Its units count by the branch's own
    value, relative to `means`, the mean of all such branches. sums: see `adds_up`; a whole branch is then worth its own
    score, less what its smaller sizes lose.
    """
    structure = table.structure
    branch, times = structure.branches[number], table.times(number)
    axes = structure.axes(branch)
    worth = np.zeros(times.shape)
    shared = np.zeros(len(structure.shared.sizes) if structure.shared else 1)
    for position, axis in enumerate(axes):
        line = np.moveaxis(times, position, 0).reshape(len(axis.sizes), -1)[:, -1]  # all other axes at their largest
        low = float((axis.sizes[0] / axis.sizes[-1]).mean())
        whole = max(LEAST, float(line[-1] - line[0]) / max(1e-9, 1.0 - low)) if len(line) > 1 else LEAST
        parts = [
            kept[c][np.searchsorted(space.clusters[c].sizes, own)]
            for c, own in zip(axis.clusters, axis.sizes.T, strict=True)
        ]
        value = np.sum(parts, axis=0) if sums else whole * np.mean(parts, axis=0)
        if structure.shared is not None and position == len(axes) - 1:
            shared = value / len(structure.branches) if sums else value  # added up over all branches
        else:
            worth += value.reshape([-1 if i == position else 1 for i in range(times.ndim)])
    own = worth.reshape(-1, len(shared))[:, 0]
    if branch.block is not None and sums:
        base = own if branch.axes else np.zeros(1)
        own = np.append((kept[branch.block][-1] - base[-1] + base).clip(0), 0.0)
    elif branch.block is not None:
        base = own if branch.axes else np.full(1, float(times.max()))
        own = np.append(base * (kept[branch.block][-1] / means if means else 1.0), 0.0)
    return own, shared
