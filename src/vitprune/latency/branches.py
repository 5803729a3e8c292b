"""A model as branches whose times add up, each depending on the sizes of few groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.allocate.ranking import Cluster
from vitprune.arrays import Ints
from vitprune.trace.graph import Graph, Group

WIDE = 3  # a cluster at home in more regions than this is shared by all
MOST_AXES = 3  # groups of one branch that are varied one by one; more move together
LINE = 64  # sizes along which several groups move together

Region = tuple[str, ...]  # paths of the modules that it consists of; () is what no other region holds


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """Clusters that are varied together: mostly just one."""

    clusters: tuple[int, ...]
    sizes: Ints  # (choices, clusters), ascending


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """Modules whose time, nested branches taken off, depends on the branch's own axes and the shared one."""

    modules: Region
    axes: tuple[Axis, ...]
    block: int | None  # the cluster (of one unit) whose removal removes the branch, its time included


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """All branches; the first is what is left of the model when the others are taken off."""

    branches: tuple[Branch, ...]
    shared: Axis | None  # what many branches depend on: the residual width, above all
    kept: tuple[int, ...]  # clusters that keep their size, as no branch can say what they cost
    notes: tuple[str, ...]

    def axes(self, branch: Branch) -> tuple[Axis, ...]:
        """The axes that the branch's time depends on, the shared one last."""
        return branch.axes if self.shared is None else (*branch.axes, self.shared)


def find_structure(graph: Graph, clusters: Sequence[Cluster]) -> Structure:
    """The branches of a model for the clusters that may change.

    A region is the modules of a removable branch (norm, attention, layer scale), or the module that a group is named
    after where it lies in none. A cluster whose tensors lie in one region is an axis of it; one with tensors in two or
    three regions makes them one branch; one with tensors in more, and a residual width, is shared. Several
    shared clusters move together, by the same share of each, and so do the groups of a branch with more than three.
    """
    regions = _regions(graph, clusters)
    inside = {i: _touched(graph, c, regions) for i, c in enumerate(clusters) if len(c.sizes) > 1}
    blocks = {i for i, c in enumerate(clusters) if any(g.kind == "block" for g in c.groups)}
    shared = [
        i
        for i, found in inside.items()
        if i not in blocks and (len(found) > WIDE or any(g.kind == "residual" for g in clusters[i].groups))
    ]
    parent: dict[Region, Region] = {r: r for r in [(), *regions]}

    def root(region: Region) -> Region:
        while parent[region] != region:
            region = parent[region]
        return region

    own = {i: found for i, found in inside.items() if i not in shared}
    for found in own.values():
        first, *others = sorted(found)
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low  # the rest of the model, (), sorts first
    members: dict[Region, list[Region]] = {}
    for region in parent:
        members.setdefault(root(region), []).append(region)
    branches: list[Branch] = []
    kept: list[int] = []
    notes: list[str] = []
    for key, parts in sorted(members.items()):
        here = [i for i, found in own.items() if root(next(iter(found))) == key]
        removable = [i for i in here if i in blocks]
        if removable and (len(removable) > 1 or clusters[removable[0]].groups[0].modules != key or len(parts) > 1):
            kept += removable
            names = ", ".join(g.name for i in removable for g in clusters[i].groups)
            notes.append(f"{names}: kept, as their times cannot be told from those of other groups")
            removable = []
        axes = [Axis((i,), clusters[i].sizes[:, None]) for i in here if i not in blocks]
        if len(axes) > MOST_AXES:
            axes = [_line([i for axis in axes for i in axis.clusters], clusters)]
        modules = tuple(path for part in parts for path in part)
        branches.append(Branch(modules, tuple(axes), removable[0] if removable else None))
    if len(shared) > 1:
        notes.append(
            f"{', '.join(clusters[i].groups[0].name for i in shared)}: keep the same share of each, as all branches "
            "depend on them"
        )
    line = Axis((shared[0],), clusters[shared[0]].sizes[:, None]) if len(shared) == 1 else None
    return Structure(tuple(branches), _line(shared, clusters) if len(shared) > 1 else line, tuple(kept), tuple(notes))


def _regions(graph: Graph, clusters: Sequence[Cluster]) -> list[Region]:
    removable = [g.modules for g in graph.groups if g.kind == "block"]
    found: list[Region] = [m for m in removable if not any(_holds(o, p) for o in removable if o != m for p in m)]
    for cluster in clusters:
        for group in cluster.groups:
            named = group.module and group.kind not in ("block", "residual")
            if named and any(not _deepest(found, m.tensor) for m in group.members):
                found.append((group.module,))
    return list(dict.fromkeys(found))


def _holds(region: Region, path: str) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in region)


def _deepest(regions: Sequence[Region], path: str) -> Region:
    """The region that holds the path; of nested ones the inner one."""
    depth = {
        region: max(len(m) for m in region if path == m or path.startswith(f"{m}."))
        for region in regions
        if _holds(region, path)
    }
    return max(depth, key=lambda r: depth[r]) if depth else ()


def _touched(graph: Graph, cluster: Cluster, regions: Sequence[Region]) -> set[Region]:
    def of(group: Group) -> set[Region]:
        if group.kind == "block":
            return {_deepest(regions, group.module)}
        return {_deepest(regions, m.tensor) for m in group.members} or {_deepest(regions, group.module)}

    return set().union(*(of(g) for g in cluster.groups))


def _line(positions: Sequence[int], clusters: Sequence[Cluster]) -> Axis:
    """The axis along which several clusters keep the same share, each the nearest size that it may have."""
    count = min(LINE, max(len(clusters[i].sizes) for i in positions))
    low = max(float(clusters[i].sizes[0] / clusters[i].sizes[-1]) for i in positions)
    columns = []
    for i in positions:
        sizes = clusters[i].sizes
        share = np.linspace(min(low, 1.0), 1.0, count)
        columns.append(sizes[np.abs(sizes[None, :] - share[:, None] * sizes[-1]).argmin(axis=1)])
    return Axis(tuple(positions), np.unique(np.stack(columns, axis=1), axis=0))
