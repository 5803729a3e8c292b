"""Shares that are given instead of searched for: per kind of group, or per group by patterns of names."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from vitprune.allocate.depth import gone_with
from vitprune.allocate.ranking import Cluster, rank_steps
from vitprune.allocate.solve import fit_budget
from vitprune.arrays import Scores
from vitprune.errors import TargetError
from vitprune.trace.graph import KINDS, Graph

_SHARE = "the share that stays"
_LISTS = "`vitprune inspect` lists the names"


def read_layer_ratios(path: Path) -> dict[str, float]:
    """Pattern of group names -> share that stays, in the order of a JSON file (TOML if the name ends in .toml).

    Raises TargetError for a file that cannot be read, or is no flat table of numbers with every pattern once.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text, object_pairs_hook=_once)
    except OSError as error:
        raise TargetError(f"ratios file {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # malformed JSON, TOML or UTF-8
        raise TargetError(f"ratios file {path} is malformed: {error}") from error
    if not isinstance(found, dict) or not found:
        raise TargetError(f"ratios file {path} must be a table of group name patterns and shares, and not empty")
    for pattern, share in found.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not abs(share) < 2**53:
            quotes = "; in TOML, names with dots or colons stand in quotes" if isinstance(share, dict) else ""
            raise TargetError(
                f"ratios file {path}: the share of {pattern!r} must be a number, but is {str(share)[:40]!r}{quotes}"
            )
    return {pattern: float(share) for pattern, share in found.items()}


def check_ratios(graph: Graph, kinds: Sequence[str], ratios: Mapping[str, float]) -> None:
    """Pass for shares of kinds that the model has and that may shrink. Raises TargetError for others."""
    for kind, ratio in ratios.items():
        if kind not in KINDS:
            raise TargetError(f"ratios name kind {kind!r}, but kinds are {', '.join(KINDS)}")
        check_kind(graph, kind)
        if kind not in kinds:
            raise TargetError(f"ratios name kind {kind!r}, which is not among the kinds to prune: {', '.join(kinds)}")
        if not 0 < ratio <= 1:
            raise TargetError(f"ratio of {kind} must be in (0, 1], {_SHARE}, but got {ratio:g}")


def check_kind(graph: Graph, kind: str) -> None:
    """Pass when the model has groups of this kind. Raises TargetError, naming those it has, when not."""
    has = [k for k in KINDS if any(g.kind == k for g in graph.groups)]
    if kind not in has:
        raise TargetError(f"the model has no group of kind {kind}; its kinds are {', '.join(has) or 'none'}")


def check_effect(graph: Graph, left_out: Mapping[str, str], ratios: Mapping[str, float]) -> None:
    """Pass when some group of every kind with a ratio may shrink. Raises TargetError, with the reason, if none may."""
    for kind, ratio in ratios.items():
        names = [g.name for g in graph.groups if g.kind == kind]
        if ratio < 1 and all(name in left_out for name in names):
            raise TargetError(f"ratio of {kind} is {ratio:g}, but none may shrink: {names[0]}: {left_out[names[0]]}")


def shares_of_groups(graph: Graph, left_out: Mapping[str, str], ratios: Mapping[str, float]) -> dict[str, float]:
    """Group name -> share that stays, of every group that a pattern matches and that may shrink; the first one counts.

    left_out: groups that keep their size, with the reason.

    Raises TargetError for a pattern that decides nothing, and for a share outside (0, 1] (blocks: [0, 1]).
    """
    found: dict[str, float] = {}
    taken: set[str] = set()
    for pattern, share in ratios.items():
        matches = [g for g in graph.groups if fnmatchcase(g.name, pattern)]
        mine = [g for g in matches if g.name not in taken]
        where = f"ratio pattern {pattern!r}"
        if not matches:
            raise TargetError(f"{where} matches no group; {_LISTS}")
        if not mine:
            raise TargetError(f"{where} comes too late: earlier patterns take all of its groups; put it before them")
        least = 0 if all(g.kind == "block" for g in mine) else np.finfo(float).tiny
        if not least <= share <= 1:
            raise TargetError(f"{where} must have a share in (0, 1], {_SHARE} (blocks: 0 too), but has {share:g}")
        if share < 1 and all(g.name in left_out for g in mine):
            raise TargetError(f"{where} matches nothing that may shrink: {mine[0].name}: {left_out[mine[0].name]}")
        taken |= {g.name for g in mine}
        found |= {g.name: share for g in mine if g.name not in left_out}
    return found


def apply_ratios(
    graph: Graph,
    clusters: Sequence[Cluster],
    scores: Scores,
    scope: str,
    ratios: Mapping[str, float],
    shares: Mapping[str, float],
    *,
    free: bool,
    unit_costs: Mapping[str, float] | None = None,
) -> list[Cluster]:
    """Clusters with a given share keep just one size; the others, unless `free`, their largest.

    shares: per group; its cluster takes the permitted size nearest to the share, of two equally near ones the larger.
    ratios: per kind; what `shares` leaves of the kind keeps at most that share of its units, ranked by `scope` (and
    `unit_costs`, see `rank_steps`).
    Blocks come first: what lies inside of those that go keeps its size, and counts in no other ratio.

    Raises TargetError for a ratio that the rounding does not allow, and for two shares of groups that keep equal sizes.
    """
    fixed: dict[int, int] = {}

    def fix(position: int, size: int) -> None:
        if fixed.setdefault(position, size) != size:
            names = ", ".join(g.name for g in clusters[position].groups)
            raise TargetError(f"ratios: {names} keep equal sizes; give them, or their kinds, the same ratio")

    def fix_groups(blocks: bool) -> None:
        for position, cluster in enumerate(clusters):
            for group in cluster.groups:
                if group.name in shares and (group.kind == "block") == blocks and position not in moot:
                    away = np.abs(cluster.sizes - shares[group.name] * group.size)
                    fix(position, int(cluster.sizes[::-1][np.argmin(away[::-1])]))

    def fix_kind(kind: str, ratio: float, others: Collection[int]) -> None:
        positions = [i for i in others if any(g.kind == kind for g in clusters[i].groups)]
        if not positions:
            return
        part = [clusters[i] for i in positions]
        dense = sum(c.groups[0].size for c in part)
        steps = rank_steps(part, scores, scope, unit_costs)
        sizes = fit_budget(part, steps, lambda sizes: float(sizes.sum()), ratio * dense)
        if sizes is None:
            smallest = sum(int(c.sizes[0]) for c in part) / dense
            raise TargetError(f"ratio of {kind} must be at least {smallest:.4g} with this rounding, but got {ratio:g}")
        for position, size in zip(positions, sizes.tolist(), strict=True):
            fix(position, size)

    moot: set[int] = set()
    fix_groups(blocks=True)
    if "block" in ratios:
        fix_kind("block", ratios["block"], [i for i in range(len(clusters)) if i not in fixed])
    gone = {i for i, c in enumerate(clusters) if fixed.get(i, int(c.sizes[-1])) == 0}
    inside = gone_with(graph, {g.name for i in gone for g in clusters[i].groups})
    moot |= {i for i, c in enumerate(clusters) if i not in fixed and all(g.name in inside for g in c.groups)}
    fix_groups(blocks=False)
    others = [i for i in range(len(clusters)) if i not in fixed and i not in moot]
    for kind in (k for k in ratios if k != "block"):
        fix_kind(kind, ratios[kind], others)
    fixed |= {i: int(clusters[i].sizes[-1]) for i in moot}
    result: list[Cluster] = []
    for position, cluster in enumerate(clusters):
        only = fixed.get(position, None if free else int(cluster.sizes[-1]))
        result.append(cluster if only is None else Cluster(cluster.groups, np.array([only], dtype=np.int64)))
    return result


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found
