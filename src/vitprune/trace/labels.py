"""Labels: every position of every channel axis has one, and operators say which labels stand or fall together.

A label is an integer. Four facts are collected while the operators are walked, and solved at the end:

* `unify(a, b)`: removing a means removing b (both sides of an addition, a weight's input dim and its input);
* `cover(s, n)`: removing s removes n, not the reverse (a head and its dims);
* `freeze(a)`: a must stay, with the reason;
* `tag(a)`, `inexact(a)`: what an axis is used for; where zeroing is not removing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

Array = npt.NDArray[np.int64]
NONE = -1  # a position that no label stands for: always kept


def _ascending(a: Array) -> bool:
    return bool(np.all(a[1:] > a[:-1]))


@dataclass(slots=True)
class Labels:
    """All labels of one trace and the facts about them."""

    count: int = 0
    weak: list[tuple[Array, Array]] = field(default_factory=list)  # unified, one side broadcast: (few, many)
    loose: list[tuple[Array, Array]] = field(default_factory=list)  # unified, many with many: nothing more follows
    strong: list[tuple[Array, Array]] = field(default_factory=list)  # unified one to one: also share what covers them
    covers: list[tuple[Array, Array]] = field(default_factory=list)  # (covering, covered)
    frozen: list[tuple[Array, str, bool]] = field(default_factory=list)  # (labels, reason, whole axis?)
    by_position: list[Array] = field(default_factory=list)  # frozen as they are picked by index (the 3 of a fused qkv)
    inexact_: list[tuple[Array, str]] = field(default_factory=list)
    tags: list[tuple[Array, str]] = field(default_factory=list)
    summed: list[Array] = field(default_factory=list)  # input axes of weights: they read, they do not make

    def new(self, size: int) -> Array:
        """`size` fresh labels."""
        start = self.count
        self.count += size
        return np.arange(start, start + size, dtype=np.int64)

    def unify(self, a: Array, b: Array) -> None:
        """Unite a with b element by element, broadcasting; NONE on one side freezes the other."""
        if a is b:
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        a, b = a.ravel(), b.ravel()
        if a.size == 0 or np.array_equal(a, b):
            return
        if a.min() < 0 or b.min() < 0:
            lone = (a < 0) ^ (b < 0)
            self.freeze(np.maximum(a, b)[lone], "joined with positions that cannot be removed")
            both = (a >= 0) & (b >= 0)
            a, b = a[both], b[both]
            if a.size == 0:
                return
        if _ascending(a) and _ascending(b):
            self.strong.append((a, b))
            return
        pairs = np.unique(np.stack([a, b]), axis=1)
        a, b = pairs[0], pairs[1]
        in_a, in_b = len(np.unique(a)), len(np.unique(b))
        if in_a == in_b == a.size:
            self.strong.append((a, b))
        elif in_b == a.size:  # every label of b meets one of a: a is broadcast over b
            self.weak.append((a, b))
        elif in_a == a.size:
            self.weak.append((b, a))
        else:
            self.loose.append((a, b))

    def cover(self, covering: Array, covered: Array) -> None:
        """State that removing `covering` removes `covered` (broadcast against each other)."""
        a, b = np.broadcast_arrays(covering, covered)
        a, b = a.ravel(), b.ravel()
        ok = (a >= 0) & (b >= 0)
        self.covers.append((a[ok], b[ok]))

    def freeze(self, a: Array, reason: str) -> None:
        """State that `a` cannot be removed.

        Labels that vary over their own axis alone stand for the whole axis: what covers them stays too. Labels that
        also vary over another axis (the dims of each head) fix the number of dims, not the number of heads.
        """
        whole = sum(1 for n in a.shape if n > 1) < 2
        a = a[a >= 0].ravel()
        if a.size:
            self.frozen.append((a, reason, whole))

    def freeze_positions(self, a: Array) -> None:
        """State that `a` is picked by literal index: it stays, and is no lane of what it covers."""
        self.freeze(a, "picked by a literal index")
        self.by_position.append(a[a >= 0].ravel())

    def inexact(self, a: Array, reason: str) -> None:
        """State that zeroing `a` is not the same as removing it."""
        self.inexact_.append((a[a >= 0].ravel(), reason))

    def tag(self, a: Array, name: str) -> None:
        """Remember what `a` is used for."""
        self.tags.append((a[a >= 0].ravel(), name))


def components(count: int, pairs: list[tuple[Array, Array]]) -> Array:
    """Component number of every label, for the graph whose edges are `pairs`."""
    if not pairs:
        return np.arange(count, dtype=np.int64)
    a = np.concatenate([p[0] for p in pairs])
    b = np.concatenate([p[1] for p in pairs])
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Covers:
    """For every strong component the classes that cover it, ascending, row after row."""

    start: Array  # (components + 1,): where each component's classes begin
    classes: Array

    def rows(self) -> Array:
        """For every entry of `classes` the component that it covers."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def of(self, own: Array) -> tuple[Array, Array]:
        """(positions in `own`, covering classes): one entry for every pair."""
        first, count = self.start[own], self.start[own + 1] - self.start[own]
        positions = np.repeat(np.arange(len(own)), count)
        offset = np.arange(len(positions)) - np.repeat(np.cumsum(count) - count, count)
        return positions, self.classes[first[positions] + offset]


@dataclass(slots=True)
class Solved:
    """The labels' classes: what is removed together."""

    cls: Array  # class of every label
    own: Array  # strong component of every label
    frozen: dict[int, str]  # class -> reason
    positional: set[int]  # classes picked by index
    covers: Covers  # of every strong component (positional classes left out)
    inexact: dict[int, tuple[str, ...]]
    tags: dict[int, frozenset[str]]


def solve(labels: Labels) -> Solved:
    """The classes, with everything that is known of each."""
    cls = components(labels.count, labels.strong + labels.weak + labels.loose)
    own = components(labels.count, labels.strong)
    frozen: dict[int, str] = {}
    for array, reason, _ in labels.frozen:
        for c in np.unique(cls[array]).tolist():
            frozen.setdefault(c, reason)
    positional = {c for array in labels.by_position for c in np.unique(cls[array]).tolist()}
    inexact: dict[int, set[str]] = {}
    for array, reason in labels.inexact_:
        for c in np.unique(cls[array]).tolist():
            inexact.setdefault(c, set()).add(reason)
    tags: dict[int, set[str]] = {}
    for array, name in labels.tags:
        for c in np.unique(cls[array]).tolist():
            tags.setdefault(c, set()).add(name)
    covers = _covers(labels, cls, own, positional)
    twins = _twins(covers)
    if len(twins):
        _, first = np.unique(cls, return_index=True)
        labels.loose.append((first[twins[:, 0]], first[twins[:, 1]]))
        return solve(labels)
    for array, reason, whole in labels.frozen:
        if whole:
            for c in np.unique(covers.of(np.unique(own[array]))[1]).tolist():
                frozen.setdefault(c, reason)
    return Solved(
        cls,
        own,
        frozen,
        positional,
        covers,
        {c: tuple(sorted(r)) for c, r in inexact.items()},
        {c: frozenset(t) for c, t in tags.items()},
    )


def _twins(covers: Covers) -> Array:
    """(pairs, 2): classes that cover the very same components: heads seen on two sides, which go together."""
    rows, classes = covers.rows(), covers.classes
    order = np.lexsort((rows, classes))
    rows, classes = rows[order], classes[order]
    found: dict[bytes, int] = {}
    pairs: list[tuple[int, int]] = []
    for c, part in zip(np.unique(classes), np.split(rows, np.flatnonzero(np.diff(classes)) + 1), strict=False):
        other = found.setdefault(part.tobytes(), int(c))
        if other != c:
            pairs.append((other, int(c)))
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _covers(labels: Labels, cls: Array, own: Array, positional: set[int]) -> Covers:
    """For every strong component the classes that cover it, directly, by what covers those, or over a broadcast."""
    rows, columns = int(own.max(initial=-1)) + 1, int(cls.max(initial=-1)) + 1
    if not labels.covers:
        return Covers(np.zeros(rows + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    above = np.concatenate([s for s, _ in labels.covers])
    below = np.concatenate([n for _, n in labels.covers])
    inherit = [(own[below], own[above])]  # component -> components whose covers it inherits
    counts = ~np.isin(cls[above], sorted(positional))
    direct = _incidence(own[below][counts], cls[above][counts], (rows, columns))
    if direct.nnz:
        inherit += [(own[many], own[few]) for few, many in labels.weak]
    child, parent = (np.concatenate(side) for side in zip(*inherit, strict=True))
    parents = _incidence(child[child != parent], parent[child != parent], (rows, rows))
    # propagate to the fixed point along parents; graphs are shallow (a head within a branch within a table)
    result, entries = direct, -1
    while result.nnz != entries:
        entries = result.nnz
        result = (direct + parents @ result).astype(bool)
    result.sort_indices()
    return Covers(result.indptr.astype(np.int64), result.indices.astype(np.int64))


def _incidence(rows: Array, columns: Array, shape: tuple[int, int]) -> csr_matrix:
    """The sparse boolean matrix that is true at these places."""
    return coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=shape).tocsr()
