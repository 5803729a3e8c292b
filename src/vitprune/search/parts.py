"""What can be made smaller by itself: the groups of one kind in one block, or what stands in no block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vitprune.allocate.allocate import choices
from vitprune.allocate.ranking import Cluster
from vitprune.allocate.target import Target
from vitprune.search.errors import SearchError
from vitprune.search.prober import Prober
from vitprune.search.space import MODULES

PartsPer = Literal["kind", "module"]
PARTS_PER: tuple[PartsPer, ...] = get_args(PartsPer)


@dataclass(frozen=True, slots=True)
class Part:
    """Groups that are made smaller together."""

    name: str  # "mlp 3", "qk+v 0", "attn branch 2", "residual"; unique
    row: str  # the same in every block: "mlp", "qk+v", ...
    block: int | None  # None: it reaches into all blocks, or stands in none
    choices: tuple[Mapping[str, int], ...]  # sizes of its groups, the dense ones first, then fewer and fewer units
    removed: tuple[float, ...]  # per choice, the fraction of its units that goes; the first is 0

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of its groups."""
        return tuple(self.choices[0])

    def nearest(self, fraction: float) -> int:
        """The choice that removes about so much, at least something; of two equally near ones the larger model."""
        return 1 + int(np.argmin([round(abs(r - fraction), 9) for r in self.removed[1:]]))


def parts_of(prober: Prober, per: PartsPer = "kind") -> tuple[Part, ...]:
    """All parts that may shrink, by the rules of the prober, in the model's order.

    per: "kind" (q/k and v dims apart where they may differ in size), "module" (attention as a whole).
    Whole branches, and what stands in no block, are parts of their own, each.

    Raises SearchError for another word, and when nothing may shrink.
    """
    if per not in PARTS_PER:
        raise SearchError(f"parts are made per {', '.join(PARTS_PER)}, but got {per!r}")
    inside = {name for axis in prober.space.axes for name in axis.groups}
    free = choices(prober.graph, prober.scores, Target("macs", 1.0), **prober.rules).clusters
    free = [c for c in free if len(c.sizes) > 1 and any(g.name in inside for g in c.groups)]
    if not free:
        raise SearchError("nothing of the model may shrink: choose other kinds, or protect less")
    streams = [c for c in free if c.groups[0].block is None]
    together: dict[tuple[str, int | None], list[Cluster]] = {}
    for cluster in free:
        row, block = _row(cluster, per), cluster.groups[0].block
        if block is None and sum(_row(c, per) == row for c in streams) > 1:
            row = f"{row} {cluster.groups[0].name.partition(':')[0]}"
        together.setdefault((row, block), []).append(cluster)
    return tuple(_part(row, block, clusters) for (row, block), clusters in together.items())


def _row(cluster: Cluster, per: PartsPer) -> str:
    first = cluster.groups[0]
    if first.kind == "block":
        return f"{first.name.partition(':')[0].rpartition('.')[2]} branch"
    kinds = (MODULES.get(g.kind, g.kind) if per == "module" else g.kind for g in cluster.groups)
    return "+".join(dict.fromkeys(kinds))


def _part(row: str, block: int | None, clusters: list[Cluster]) -> Part:
    """Clusters that take the same share, each the permitted size that is nearest to it, of two the larger."""
    shares = sorted({int(n) / c.groups[0].size for c in clusters for n in c.sizes}, reverse=True)
    units = sum(g.units for c in clusters for g in c.groups)
    found: list[Mapping[str, int]] = []
    for share in shares:
        sizes: dict[str, int] = {}
        for c in clusters:
            away = np.abs(c.sizes[::-1] - share * c.groups[0].size)
            sizes |= {g.name: int(c.sizes[::-1][np.argmin(away)]) for g in c.groups}
        if sizes not in found:
            found.append(sizes)
    lanes = {g.name: g.lanes for c in clusters for g in c.groups}
    removed = tuple(1 - sum(lanes[n] * size for n, size in sizes.items()) / units for sizes in found)
    return Part(row if block is None else f"{row} {block}", row, block, tuple(found), removed)
