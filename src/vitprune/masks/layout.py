"""All masks as one flat vector of units, and where each unit multiplies: whole numbers only, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitprune.allocate.widths import Minimum, least, permitted_sizes
from vitprune.arrays import Ints
from vitprune.masks.cut import Slices
from vitprune.masks.vectors import Vector
from vitprune.trace.graph import Graph


@dataclass(frozen=True, slots=True)
class Line:
    """A stretch of the flat lines: the factors along one dim of one tensor."""

    tensor: str
    dim: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Units are numbered vector by vector, lane by lane; after them come the constant 1 and the unions."""

    vectors: tuple[Vector, ...]
    offset: Ints  # (vectors + 1,): where each vector's units begin
    lane: Ints  # (units,): number of the unit's lane
    lane_start: Ints  # (lanes,)
    lane_cluster: Ints  # (lanes,): lanes of one cluster keep as many units
    permitted: Ints  # (clusters, largest size + 1): the smallest permitted size that is at least so many
    unions: Ints  # (union units, vectors of the group): units of which one at least must stay
    union_of: Mapping[str, int]  # group with several vectors -> its first union
    lines: tuple[Line, ...]
    ids: Ints  # (line positions, at most so many groups): the units whose product is the factor

    @property
    def units(self) -> int:
        """Number of units over all vectors."""
        return int(self.offset[-1])

    @property
    def smallest(self) -> Ints:
        """(clusters,): the smallest size that each may take."""
        return self.permitted[:, 0]


def layout_of(
    graph: Graph,
    vectors: Sequence[Vector],
    shapes: Mapping[str, tuple[int, ...]],
    norms: Sequence[tuple[str, Ints]],
    followers: Sequence[tuple[str, Slices]],
    round_to: int,
    minimum: Minimum,
) -> tuple[Layout, tuple[Line, ...]]:
    """The layout, and the lines of the norms.

    shapes: of the parameters. norms: (module path, labels of the positions that it averages over). followers: (group
    with several vectors, what is silent where all of them are closed).
    """
    offset = np.concatenate([[0], np.cumsum([v.lanes * v.size for v in vectors])]).astype(np.int64)
    units = int(offset[-1])
    lane_vector = np.repeat(np.arange(len(vectors)), [v.lanes for v in vectors])
    sizes = np.array([v.size for v in vectors])[lane_vector]
    lane_start = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    cluster, permitted = _clusters(graph, vectors, round_to, minimum)
    unions, union_of = _unions(vectors, offset)
    table = _Table(units)
    for v, first in zip(vectors, offset, strict=False):
        for s in v.slices:
            numbers = np.repeat(first + np.arange(v.lanes * v.size), s.index.shape[-1])
            table.put(("", s.tensor, s.dim), shapes[s.tensor][s.dim], s.index.ravel(), numbers)
    for group, s in followers:
        numbers = units + 1 + union_of[group] + np.arange(s.index.shape[0] * s.index.shape[1])
        table.put(
            ("", s.tensor, s.dim), shapes[s.tensor][s.dim], s.index.ravel(), np.repeat(numbers, s.index.shape[-1])
        )
    own = _units_of_classes(graph, vectors, offset, union_of, units)
    for path, labels in norms:
        table.add_labels(("norm", path, 0), graph, labels, own)
    lines, ids = table.lines()
    layout = Layout(
        tuple(vectors),
        offset,
        np.repeat(np.arange(len(lane_start)), sizes),
        lane_start.astype(np.int64),
        cluster[lane_vector],
        permitted,
        unions,
        union_of,
        tuple(Line(t, d, a, b) for (what, t, d), a, b in lines if not what),
        ids,
    )
    return layout, tuple(Line(t, d, a, b) for (what, t, d), a, b in lines if what)


class _Table:
    """Per line the columns of unit numbers; -1 stands for the constant 1."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.columns: dict[tuple[str, str, int], list[Ints]] = {}

    def put(self, key: tuple[str, str, int], length: int, at: Ints, numbers: Ints) -> None:
        """Enters one number at each of the positions `at` of a line, in the first column where all of them are free."""
        columns = self.columns.setdefault(key, [])
        column = next((c for c in columns if (c[at] < 0).all()), None)
        if column is None:
            columns.append(column := np.full(length, -1, dtype=np.int64))
        column[at] = numbers

    def add_labels(self, key: tuple[str, str, int], graph: Graph, labels: Ints, own: Ints) -> None:
        """The units behind the labels of one axis: those of their own classes, and of the classes that cover them."""
        solved = graph.detail.solved
        at, covering = solved.covers.of(solved.own[labels])
        at = np.concatenate([np.arange(len(labels)), at])
        numbers = own[np.concatenate([solved.cls[labels], covering])]
        at, numbers = at[numbers >= 0], numbers[numbers >= 0]
        while len(at):
            now, first = np.unique(at, return_index=True)
            self.put(key, len(labels), now, numbers[first])
            rest = np.setdiff1d(np.arange(len(at)), first)
            at, numbers = at[rest], numbers[rest]

    def lines(self) -> tuple[list[tuple[tuple[str, str, int], int, int]], Ints]:
        """(key, start, stop) of every line, and the unit numbers of all positions."""
        width = max((len(c) for c in self.columns.values()), default=1)
        parts: list[Ints] = []
        found: list[tuple[tuple[str, str, int], int, int]] = []
        start = 0
        for key, columns in self.columns.items():
            table = np.full((len(columns[0]), width), -1, dtype=np.int64)
            table[:, : len(columns)] = np.stack(columns, axis=1)
            parts.append(np.where(table < 0, self.units, table))
            found.append((key, start, start + len(table)))
            start += len(table)
        return found, np.concatenate(parts) if parts else np.zeros((0, 1), dtype=np.int64)


def _clusters(graph: Graph, vectors: Sequence[Vector], round_to: int, minimum: Minimum) -> tuple[Ints, Ints]:
    """Cluster of every vector, and the table of permitted sizes."""
    number = np.arange(len(vectors))
    decided = {g: i for i, v in enumerate(vectors) if v.alone for g in v.groups}
    for names in graph.cosize:
        mine = [decided[n] for n in names if n in decided]
        for other in mine[1:]:
            number[number == number[other]] = number[mine[0]]
    kept, cluster = np.unique(number, return_inverse=True)
    widest = max(v.size for v in vectors)
    table = np.zeros((len(kept), widest + 1), dtype=np.int64)
    for c in range(len(kept)):
        own = [graph[g] for i in np.flatnonzero(cluster == c).tolist() for g in vectors[i].groups]
        sizes = permitted_sizes(own[0], round_to, min(least(own[0], minimum), own[0].size))
        table[c] = np.append(sizes, sizes[-1])[np.searchsorted(sizes, np.arange(widest + 1))]
    return np.asarray(cluster, dtype=np.int64), table


def _unions(vectors: Sequence[Vector], offset: Ints) -> tuple[Ints, dict[str, int]]:
    groups: dict[str, list[int]] = {}
    for i, v in enumerate(vectors):
        if not v.alone:
            groups.setdefault(v.groups[0], []).append(i)
    if not groups:
        return np.zeros((0, 1), dtype=np.int64), {}
    width = max(map(len, groups.values()))
    parts, first, at = [], {}, 0
    for name, members in groups.items():
        size = vectors[members[0]].lanes * vectors[members[0]].size
        columns = [offset[i] + np.arange(size) for i in members]
        parts.append(np.stack((columns * width)[:width] if len(columns) < width else columns, axis=1))
        first[name] = at
        at += size
    return np.concatenate(parts), first


def _units_of_classes(
    graph: Graph, vectors: Sequence[Vector], offset: Ints, union_of: Mapping[str, int], units: int
) -> Ints:
    """Per class of the trace the unit (or the union, numbered after the constant) that decides it; -1 for none."""
    known = graph.detail.units
    place = {g: int(offset[i]) for i, v in enumerate(vectors) if v.alone for g in v.groups}
    place |= {g: units + 1 + first for g, first in union_of.items()}
    out = np.full(len(known.group), -1, dtype=np.int64)
    for number, group in enumerate(known.groups):
        if group.name in place:
            mine = np.flatnonzero(known.group == number)
            out[mine] = place[group.name] + known.lane[mine] * group.size + known.unit[mine]
    return out
