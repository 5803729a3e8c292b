"""Divergences of parts, added up: the sizes that make the least of them within a budget, exactly.

Divergence is of second order in what an output changes by, so that of several small and unrelated changes is about the
sum of theirs: it may be added up where points of top-1 may not. What remains is for the probe of the plan to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from vitprune.allocate.depth import gone_with
from vitprune.arrays import Floats
from vitprune.latency.knapsack import Knapsack
from vitprune.search.errors import SearchError
from vitprune.search.prober import Prober
from vitprune.search.sensitivity import Curve, Curves
from vitprune.trace.graph import Graph

STEPS, STEPS_SHARED = 20_000, 8_000  # of the dense cost: its resolution; with a knapsack per shared size
ITEM, SHARED = 256, 100  # combinations of sizes of what multiplies in costs, and of what all blocks share, at most
SINGLE = 64  # sizes of a part that stands alone, at most
TOGETHER = 6  # parts that multiply, at most; more are taken as if each were alone

Sizes = Mapping[str, int]


def divergence_at(curve: Curve, removed: Sequence[float]) -> Floats:
    """Divergence (nats) at fractions removed, between 0 and the largest measured.

    Its root, which is of first order in the change, is interpolated by the monotone cubics of Fritsch and Carlson
    (SIAM J. Numer. Anal. 17, 1980); where a larger fraction seemed to cost less, it counts as much as the smaller one.
    """
    x = [0.0, *(level.removed for level in curve.levels)]
    y = np.maximum.accumulate([0.0, *(max(level.divergence, 0.0) for level in curve.levels)])
    root: Floats = PchipInterpolator(x, np.sqrt(y))(np.asarray(removed))
    return root**2


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What may become of one part, or of several that multiply in costs."""

    sizes: tuple[Sizes, ...]  # of all their groups
    divergence: Floats  # per entry of sizes


class Adder:
    """Divergences added up over parts, and costs as they are.

    Parts whose sizes multiply in costs (heads and their dims, a branch and what is in it) are one item of a knapsack
    with all combinations of their sizes. What all blocks share, the residual width, has a knapsack for each of its
    sizes. So costs are exact, up to 1/8,000 of the dense one per item, always in favour of the budget.
    """

    def __init__(self, curves: Curves, prober: Prober, cost: str) -> None:
        self._prober = prober
        measured = [c for c in curves.curves if c.levels]
        if not measured:
            raise SearchError("no part was measured, so there is nothing to choose by; permit more probes (--trials)")
        shared, items = _items(prober.graph, measured)
        counted = _counter(prober, cost)
        self._shared = _combined(prober.graph, [_options(c, SHARED, len(shared)) for c in shared])
        self._items = [
            _combined(prober.graph, [_options(c, SINGLE if len(i) == 1 else ITEM, len(i)) for c in i]) for i in items
        ]
        full = prober.graph.sizes()
        whole = float(counted(full)[0])
        unit = 1 / (STEPS if len(self._shared.sizes) == 1 else STEPS_SHARED)
        self._floors, self._knapsacks, self._cheapest = [], [], []
        for sizes in self._shared.sizes:
            base = {**full, **sizes}
            dense = float(counted(base)[0]) / whole
            saved = [dense - counted({**base, **_stacked(i.sizes)}) / whole for i in self._items]
            self._floors.append(dense - sum(float(s.max()) for s in saved))
            self._cheapest.append([int(s.argmax()) for s in saved])
            costs = [s.max() - s for s in saved]
            self._knapsacks.append(Knapsack(costs, [-i.divergence for i in self._items], unit))

    def sizes(self, budget: float) -> dict[str, int]:
        """Sizes of all parts' groups within the budget, a share of the dense cost; the smallest where none is."""
        worth = [
            knapsack.value(budget - floor) - lost
            for knapsack, floor, lost in zip(self._knapsacks, self._floors, self._shared.divergence, strict=True)
        ]
        best = int(np.argmax(worth))
        if np.isfinite(worth[best]):
            chosen = self._knapsacks[best].choose(budget - self._floors[best])
        else:
            best = int(np.argmin(self._floors))
            chosen = self._cheapest[best]
        sizes = dict(self._shared.sizes[best])
        for item, choice in zip(self._items, chosen, strict=True):
            sizes |= item.sizes[choice]
        return sizes

    def divergence(self, sizes: Sizes) -> float:
        """The sum (nats) at sizes that this object gave."""
        total = 0.0
        for options in (self._shared, *self._items):
            mine = {name: sizes[name] for name in options.sizes[0]}
            total += float(options.divergence[options.sizes.index(mine)])
        return total


def _items(graph: Graph, curves: Sequence[Curve]) -> tuple[list[Curve], list[list[Curve]]]:
    """Curves of what all blocks share, and the others by what multiplies in costs."""
    owner = {name: i for i, c in enumerate(curves) for name in c.part.groups}
    meets = [{owner[n] for n in names if n in owner} for names, _ in (*graph.macs.terms, *graph.params.terms)]
    shared = {i for i, c in enumerate(curves) if c.part.block is None and any(i in m and len(m) > 1 for m in meets)}
    item = {i: {i} for i in range(len(curves)) if i not in shared}
    for met in meets:
        union: set[int] = set().union(*(item[i] for i in met - shared))
        item |= dict.fromkeys(union, union)
    items = list({min(members): sorted(members) for members in item.values()}.values())
    split = [[i] for members in items if len(members) > TOGETHER for i in members]
    items = [m for m in items if len(m) <= TOGETHER] + split
    return [curves[i] for i in sorted(shared)], [[curves[i] for i in members] for members in items]


def _options(curve: Curve, most: int, together: int) -> Options:
    """The part's permitted sizes within what was measured, thinned so that `together` such give at most `most`."""
    part, reach = curve.part, curve.levels[-1].removed
    within = [i for i, removed in enumerate(part.removed) if removed <= reach + 1e-9]
    count = max(2, int(most ** (1 / together) + 1e-9))
    if len(within) > count:
        within = [within[i] for i in np.unique(np.linspace(0, len(within) - 1, count).round().astype(int))]
    return Options(
        tuple(part.choices[i] for i in within), divergence_at(curve, [min(part.removed[i], reach) for i in within])
    )


def _combined(graph: Graph, parts: Sequence[Options]) -> Options:
    """All combinations of the parts' sizes; what lies in a branch that goes stays as it is, and costs nothing."""
    blocks = {g.name for g in graph.groups if g.kind == "block"}
    sizes: list[Sizes] = []
    lost: list[float] = []
    for chosen in product(*(range(len(p.sizes)) for p in parts)):
        taken: dict[str, int] = {}
        for part, choice in zip(parts, chosen, strict=True):
            taken |= part.sizes[choice]
        inside = gone_with(graph, {name for name, size in taken.items() if name in blocks and size == 0})
        if all(taken[name] == graph[name].size for name in inside if name in taken):
            sizes.append(taken)
            lost.append(sum(float(p.divergence[c]) for p, c in zip(parts, chosen, strict=True)))
    return Options(tuple(sizes), np.array(lost))


def _stacked(sizes: Sequence[Sizes]) -> dict[str, Any]:
    return {name: np.array([s[name] for s in sizes], dtype=np.float64) for name in sizes[0]}


def _counter(prober: Prober, cost: str) -> Callable[[Mapping[str, Any]], Floats]:
    """Sizes of all groups, some of them arrays -> costs, an array."""
    if cost != "latency":
        polynomial = prober.graph.macs if cost == "macs" else prober.graph.params
        return lambda sizes: np.atleast_1d(np.asarray(polynomial.evaluate(sizes), dtype=np.float64))
    predict = prober.latency
    if predict is None:
        raise SearchError("a search by latency needs a table of times, but the prober has none")
    return lambda sizes: np.array([predict(one) for one in _singly(sizes)])


def _singly(sizes: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    count = max(np.size(size) for size in sizes.values())
    for i in range(count):
        yield {name: int(np.broadcast_to(size, count)[i]) for name, size in sizes.items()}
