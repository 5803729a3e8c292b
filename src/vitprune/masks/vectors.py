"""Mask vectors: which groups share one, and which groups have several."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from vitprune.masks.cut import Cuts, Slices
from vitprune.masks.errors import MaskError
from vitprune.trace.graph import KINDS as ALL_KINDS
from vitprune.trace.graph import Graph, Group

Sharing = Literal["residual", "independent", "blocks", "inputs"]
SHARING: tuple[Sharing, ...] = get_args(Sharing)


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """One mask: a number for every unit of every lane."""

    name: str  # of its first group, and of the layer where a group has several
    kind: str
    lanes: int
    size: int
    slices: tuple[Slices, ...]  # what it multiplies
    groups: tuple[str, ...]  # that it decides; alone, or a unit goes when all vectors of the group drop it
    alone: bool = True


def vectors_of(
    cuts: Cuts, groups: Sequence[Group], sharing: Sharing, everywhere: Collection[str] = ()
) -> tuple[tuple[Vector, ...], Mapping[str, str]]:
    """The vectors that mask `groups`, and group name -> why a group can have none.

    "residual": one vector per group. "blocks": one for the groups at the same place of every block. "independent": for
    the residual width one for each layer that writes to it. "inputs": for the residual width one for each layer that
    reads it (queries, keys and values of a fused layer share theirs). everywhere: kinds masked in all their slices.

    Source: sharing strategies of L. Tredese (Politecnico di Torino, 2023); "inputs": arXiv 2104.08500, section 3.
    """
    if sharing not in SHARING:
        raise MaskError(f"sharing must be one of {', '.join(SHARING)}, but got {sharing!r}")
    found: list[Vector] = []
    left: dict[str, str] = {}
    for group in groups:
        if group.kind == "residual" and sharing in ("independent", "inputs"):
            parts = cuts.makers(group) if sharing == "independent" else cuts.readers(group)
            for owner in dict.fromkeys(s.tensor.rpartition(".")[0] for s in parts):
                held = tuple(s for s in parts if s.tensor.rpartition(".")[0] == owner)
                if {s.index.shape[-1] for s in held} == {1}:
                    name = f"{group.name}@{owner}"
                    found.append(Vector(name, group.kind, group.lanes, group.size, held, (group.name,), False))
            if not any(v.groups == (group.name,) for v in found):
                left[group.name] = "no layer holds one slice per unit of it"
            continue
        slices = cuts.everywhere(group) if group.kind in everywhere else cuts.of(group)
        if slices:
            found.append(Vector(group.name, group.kind, group.lanes, group.size, slices, (group.name,)))
        else:
            left[group.name] = "no layer reads its units alone"
    return _tied(cuts.graph, found) if sharing == "blocks" else tuple(found), left


def _tied(graph: Graph, vectors: Sequence[Vector]) -> tuple[Vector, ...]:
    """Vectors at the same place of different blocks, made one."""
    result: dict[tuple[object, ...], Vector] = {}
    for v in vectors:
        key = _place(graph[v.groups[0]])
        old = result.get(key)
        result[key] = v if old is None else replace(old, slices=old.slices + v.slices, groups=old.groups + v.groups)
    return tuple(result.values())


def ties(groups: Iterable[Group]) -> tuple[tuple[str, ...], ...]:
    """The names of the groups that share a vector where masks are tied across blocks."""
    places: dict[tuple[object, ...], list[str]] = {}
    for group in groups:
        places.setdefault(_place(group), []).append(group.name)
    return tuple(tuple(names) for names in places.values() if len(names) > 1)


def tied(graph: Graph, together: Sequence[tuple[str, ...]]) -> Graph:
    """The graph in which these groups keep equal sizes, too."""
    return replace(graph, cosize=(*graph.cosize, *together))


def _place(group: Group) -> tuple[object, ...]:
    """The same for the same place of different blocks."""
    name = group.name if group.block is None else re.sub(r"\.\d+\.", ".*.", f".{group.name}", count=1)
    return name, group.kind, group.lanes, group.size


def without(
    groups: Sequence[Group], freeze: Collection[str], kinds: Collection[str], protect: Collection[str] = ()
) -> list[Group]:
    """The groups of these kinds that are neither frozen nor protected by name. Raises MaskError when none is left."""
    unknown = [k for k in (*kinds, *freeze) if k not in ALL_KINDS]
    if unknown:
        raise MaskError(f"kinds of masks must be of {', '.join(ALL_KINDS)}, but got {unknown[0]!r}")
    for pattern in protect:
        if not any(fnmatchcase(g.name, pattern) for g in groups):
            raise MaskError(f"protect pattern {pattern!r} matches no group; `vitprune inspect` lists the names")
    chosen = [g for g in groups if g.kind in kinds and g.kind not in freeze]
    chosen = [g for g in chosen if not any(fnmatchcase(g.name, pattern) for pattern in protect)]
    if not chosen:
        held = sorted({g.kind for g in groups})
        raise MaskError(
            f"masks need groups of the kinds asked ({', '.join(kinds)}; frozen: {', '.join(freeze) or 'none'}), but "
            f"the model has {', '.join(held) or 'none'}"
        )
    return chosen
