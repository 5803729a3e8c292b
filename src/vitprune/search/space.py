"""What a search may turn: a few shares, each of which stands for many groups."""

from __future__ import annotations

import glob
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitprune.allocate.widths import Minimum, least, permitted_sizes
from vitprune.search.errors import SearchError
from vitprune.trace.graph import KINDS, Graph, Group

Per = Literal["module", "kind", "block"]
PERS: tuple[Per, ...] = get_args(Per)
Shares = Mapping[str, float]  # name of an axis -> share of its units that stays

LEAST_WEIGHT = 0.01
MODULES = {"qk": "attention", "v": "attention"}  # the other kinds are modules of their own


@dataclass(frozen=True, slots=True)
class Axis:
    """One share."""

    name: str  # "attention", "mlp", "qk", "mlp 3", ...
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    least: float  # the smallest share that the rounding and the minimum sizes permit


@dataclass(frozen=True, slots=True)
class Space:
    """The axes of a search; together they hold every group that may shrink, once."""

    per: Per
    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the axes."""
        return tuple(axis.name for axis in self.axes)

    def within(self, shares: Shares) -> dict[str, float]:
        """The shares, none of them above 1 or below what its axis permits; axes without one stay whole."""
        return {axis.name: min(1.0, max(axis.least, shares.get(axis.name, 1.0))) for axis in self.axes}

    def rules(self, shares: Shares) -> dict[str, Any]:
        """The arguments of `allocate` for these shares: which units of an axis stay is left to its scope.

        Per block a share is that of every group on its own, as there is nothing to rank.
        """
        given = self.within(shares)
        if self.per != "block":
            return {"ratios": {kind: given[axis.name] for axis in self.axes for kind in axis.kinds}}
        pairs = ((glob.escape(group), given[axis.name]) for axis in self.axes for group in axis.groups)
        return {"layer_ratios": dict(pairs)}

    def of(self, graph: Graph, sizes: Mapping[str, int]) -> dict[str, float]:
        """The shares that a plan of these sizes has: units that stay, of all units of the axis."""
        found = {}
        for axis in self.axes:
            groups = [graph[name] for name in axis.groups]
            found[axis.name] = sum(g.lanes * sizes[g.name] for g in groups) / sum(g.units for g in groups)
        return found

    def along(self, weights: Shares, t: float) -> dict[str, float]:
        """The point at t (1: dense, towards 0: smallest) of the way on which every share is t^w, w its axis' weight."""
        return self.within({name: t ** weights[name] for name in self.names})

    def direction(self, shares: Shares) -> dict[str, float]:
        """The weights of the way on which these shares lie; an axis that is whole moves slowly."""
        return {name: max(-math.log(share), LEAST_WEIGHT) for name, share in self.within(shares).items()}


def space_of(
    graph: Graph,
    groups: Collection[str],
    per: Per = "module",
    *,
    round_to: int = 8,
    minimum: Minimum = None,
) -> Space:
    """The axes over `groups`, those that may shrink.

    per: "module" (one share for attention, one for MLPs, and one each for heads, the residual width and whole branches
    where those may shrink; source: Feng et al., PRAI 2023), "kind" (q/k and v dims apart), "block" (as module, for
    every repeated block of the model on its own). Groups that keep equal sizes share an axis.

    Raises SearchError for another word, and when nothing may shrink.
    """
    if per not in PERS:
        raise SearchError(f"shares are searched per {', '.join(PERS)}, but got {per!r}")
    chosen = [g for g in graph.groups if g.name in groups]
    if not chosen:
        raise SearchError("nothing of the model may shrink: choose other kinds, or protect less")
    names = {g.name: _name(g, per) for g in chosen}
    for together in graph.cosize:  # axes that hold groups of equal sizes become one
        some = [names[n] for n in together if n in names]
        joined = "+".join(dict.fromkeys(some))
        names = {n: joined if old in some else old for n, old in names.items()}
    axes = []
    for name in dict.fromkeys(names.values()):
        mine = [g for g in chosen if names[g.name] == name]
        smallest = {g.name: int(permitted_sizes(g, round_to, least(g, minimum))[0]) for g in mine}
        low = max(
            sum(smallest[g.name] for g in mine if g.kind == kind) / sum(g.size for g in mine if g.kind == kind)
            for kind in {g.kind for g in mine}
        )
        low = max(low, 1 / len(mine)) if per != "block" and mine[0].kind == "block" else low
        kinds = tuple(kind for kind in KINDS if any(g.kind == kind for g in mine))
        axes.append(Axis(name, kinds, tuple(g.name for g in mine), min(1.0, math.ceil(low * 1e6) / 1e6)))
    return Space(per, tuple(axes))


def _name(group: Group, per: Per) -> str:
    if per == "kind":
        return group.kind
    module = MODULES.get(group.kind, group.kind)
    return f"{module} {group.block}" if per == "block" and group.block is not None else module
