"""A plan that keeps within a budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import numpy as np

from vitprune.allocate.again import capped, known_scores
from vitprune.allocate.ranking import Cluster, Steps, rank_steps, top_units
from vitprune.allocate.ratios import apply_ratios, check_effect, check_kind, check_ratios, shares_of_groups
from vitprune.allocate.solve import Cost, fit_budget, sizes_after
from vitprune.allocate.target import COUNTED, Target, human
from vitprune.allocate.widths import Minimum, check_minimum, least, permitted_sizes
from vitprune.arrays import Ints, Scores
from vitprune.errors import TargetError
from vitprune.plan import GroupPlan, Plan, keep_all
from vitprune.trace.graph import KINDS, Graph, Group

Scope = Literal["isomorphic", "global", "local", "per-cost"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# Left out by default, and asked for by naming them: heads, as taking a share of the heads and the same share of each
# head's dims takes attention down twice, and with 3 to 12 heads to rank some blocks are left with one; the residual
# width, as one channel of it changes every layer at once; whole blocks, as their scores do not compare with those of
# units. Half of a model's MACs can be reached without any of them. The scope: weights of unlike layers do not compare,
# and one ranking over many layers takes some of them down to almost nothing. At half of the MACs of the shipped ViT,
# refitted, mlp+qk+v by "local" gave 92.7 % on validation images (dense 93.2), by "isomorphic" 89.6; "local" with heads
# 86.3, with the residual width 92.2, mlp alone 88.3 (benchmarks/kinds_scope.py).
DEFAULT_KINDS = ("mlp", "qk", "v")
DEFAULT_SCOPE: Scope = "local"


def allocate(
    graph: Graph,
    scores: Scores,
    target: Target | str | None,
    *,
    scope: Scope = DEFAULT_SCOPE,
    kinds: Iterable[str] | None = None,
    round_to: int = 8,
    minimum: Minimum = None,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    inexact: bool = False,
    within: Plan | None = None,
) -> Plan:
    """The plan that keeps the most valuable units within the budget; the result never costs more than asked.

    What is obtained lies within 1 % of the target, or within one rounding step where that is larger (then
    `settings["notes"]` says so). Everything that was not considered is in `settings["not_pruned"]`, with the reason.

    scope: "isomorphic" (every kind loses the same share, the units compete within their kind), "global" (one threshold
    on the scores), "local" (every group loses the same share), "per-cost" (one threshold on the score per MAC, or
    parameter where the target is of those, that a unit costs in the dense model: for scores in one unit,
    see `ScoreInfo.comparable`).
    kinds: group kinds that may shrink, all of which the model must have; None: DEFAULT_KINDS and those of `ratios`.
    round_to: sizes are multiples of it (see `rounding_step` for small and per-head sizes; heads go one by one).
    minimum: smallest size, one number or per kind.
    protect: patterns (as in file names) of group names that keep their size.
    ratios: per kind the share of units that stays, fixed; the other kinds make up for the rest of the target.
    layer_ratios: the same per pattern of group names, of which the first that matches a group counts; the nearest size
    that the rounding permits (see `apply_ratios`). It goes before the ratio of the group's kind.
    target: None when the ratios alone decide; nothing else then shrinks. Units are those of the groups that may shrink,
    in every lane (head).
    inexact: let groups shrink for which masking and removal differ.
    within: an earlier plan of this graph; what it removed stays removed, and groups without scores keep its units.

    Groups of `graph.cosize` keep equal sizes; which units may differ. Each lane (head) keeps its own best units.

    Raises TargetError for malformed settings, and for an unreachable target (with the smallest reachable value).
    """
    wanted = Target.parse(target) if isinstance(target, str) else target
    if wanted is not None and wanted.metric == "latency":
        raise TargetError(
            f"target {wanted} needs times measured on the model, which allocate does not have: use "
            "vitprune.prune(model, example, target) or vitprune.latency.allocate_latency(...)"
        )
    space = choices(
        graph,
        scores,
        wanted,
        scope=scope,
        kinds=kinds,
        round_to=round_to,
        minimum=minimum,
        protect=protect,
        ratios=ratios,
        layer_ratios=layer_ratios,
        inexact=inexact,
        within=within,
    )
    if wanted is None:
        return plan_at(space, sizes_after(space.clusters, space.steps, len(space.steps.cluster)), {})
    sizes = _reach(space, wanted)
    plan = plan_at(space, sizes, {wanted.metric: wanted.value})
    if wanted.metric != COUNTED:
        return plan
    value, dense = (_units(space.clusters)(n) for n in (sizes, _full(space.clusters)))
    return replace(plan, obtained={**plan.obtained, COUNTED: {"value": value, "dense": dense, "ratio": value / dense}})


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What an allocator may choose from, all rules applied: a size per cluster, and what each step is worth."""

    graph: Graph
    scores: Scores
    full: Mapping[str, int]  # sizes before anything is chosen: dense, or those of an earlier plan
    clusters: list[Cluster]
    steps: Steps
    settings: dict[str, Any]  # of the plan; its "notes" may still grow


def choices(
    graph: Graph,
    scores: Scores,
    target: Target | None,
    *,
    scope: Scope = DEFAULT_SCOPE,
    kinds: Iterable[str] | None = None,
    round_to: int = 8,
    minimum: Minimum = None,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    inexact: bool = False,
    within: Plan | None = None,
) -> Choices:
    """The clusters that may shrink and their ranked steps; arguments and errors are those of `allocate`."""
    fixed_ratios, by_layer, patterns = dict(ratios or {}), dict(layer_ratios or {}), tuple(protect)
    chosen = wanted_kinds(kinds, fixed_ratios)
    check_ratios(graph, chosen, fixed_ratios)
    _check(graph, scope, chosen, round_to, minimum, patterns)
    for kind in chosen if kinds is not None else ():
        check_kind(graph, kind)
    if target is None and not fixed_ratios and not by_layer:
        raise TargetError("give a target, or ratios per kind or layer")
    left_out = _left_out(graph, chosen, round_to, minimum, patterns, inexact)
    check_effect(graph, left_out, fixed_ratios)
    shares = shares_of_groups(graph, left_out, by_layer)
    clusters, notes = _clusters(graph, left_out, round_to, minimum)
    full = graph.sizes()
    if within is not None:
        within.check(graph)
        full = within.sizes()
        clusters, scores = capped(clusters, within, scores), known_scores(within, scores)
    costs = unit_costs(graph, clusters, target) if scope == "per-cost" else None
    free = target is not None
    clusters = apply_ratios(graph, clusters, scores, scope, fixed_ratios, shares, free=free, unit_costs=costs)
    settings = {
        "scope": scope,
        "kinds": list(chosen),
        "round_to": round_to,
        "minimum": minimum if isinstance(minimum, int) else dict(minimum or {}),
        "protect": list(patterns),
        "ratios": fixed_ratios,
        "layer_ratios": list(by_layer.items()),
        "not_pruned": left_out,
        "frozen": {f.where: f.reason for f in graph.frozen},
        "notes": notes,
    }
    return Choices(graph, scores, full, clusters, rank_steps(clusters, scores, scope, costs), settings)


def unit_costs(graph: Graph, clusters: Iterable[Cluster], target: Target | None) -> dict[str, float]:
    """Name of a cluster's first group -> MACs (parameters, for a target of those) of one unit in the dense model.

    A unit that costs nothing counts as 1e-12 of the model.
    """
    which = 1 if target is not None and target.metric == "params" else 0
    dense = graph.cost()[which]
    return {
        c.groups[0].name: max(dense - graph.cost({g.name: g.size - 1 for g in c.groups})[which], 1e-12 * dense)
        for c in clusters
    }


def plan_at(space: Choices, sizes: Ints, asked: Mapping[str, Any]) -> Plan:
    """The plan that gives every cluster its size of `sizes`; each lane keeps its own best units."""
    graph, scores = space.graph, space.scores
    size_of = {**space.full, **{g.name: int(n) for c, n in zip(space.clusters, sizes, strict=True) for g in c.groups}}
    groups = {
        g.name: GroupPlan(g.kind, g.size, g.lanes, top_units(scores[g.name], size_of[g.name]))
        if size_of[g.name] < g.size
        else keep_all(g)
        for g in graph.groups
    }
    return Plan(groups, graph.fingerprint, asked, obtained(graph, size_of), settings=space.settings)


def wanted_kinds(kinds: Iterable[str] | None, ratios: Iterable[str]) -> tuple[str, ...]:
    """The kinds that may shrink: those named, or the default ones and those that have a ratio."""
    return tuple(dict.fromkeys((*DEFAULT_KINDS, *ratios) if kinds is None else kinds))


def obtained(graph: Graph, sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Per metric the cost at `sizes`, the dense cost, and their ratio."""
    return {
        metric: {"value": value, "dense": dense, "ratio": value / dense if dense else 1.0}
        for metric, value, dense in zip(("macs", "params"), graph.cost(sizes), graph.cost(), strict=True)
    }


def _check(
    graph: Graph,
    scope: str,
    kinds: Sequence[str],
    round_to: int,
    minimum: Minimum,
    patterns: Sequence[str],
) -> None:
    if scope not in SCOPES:
        raise TargetError(f"scope must be one of {', '.join(SCOPES)}, but got {scope!r}")
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise TargetError(f"kinds must be some of {', '.join(KINDS)}, but got {', '.join(unknown) or 'none'}")
    if round_to < 1:
        raise TargetError(f"round_to must be at least 1, but got {round_to}")
    check_minimum(minimum)
    for pattern in patterns:
        if not any(fnmatchcase(g.name, pattern) for g in graph.groups):
            raise TargetError(f"protect pattern {pattern!r} matches no group; `vitprune inspect` lists the names")


def _left_out(
    graph: Graph, kinds: Sequence[str], round_to: int, minimum: Minimum, patterns: Sequence[str], inexact: bool
) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for group in graph.groups:
        pattern = next((p for p in patterns if fnmatchcase(group.name, p)), None)
        low = least(group, minimum)
        if group.kind not in kinds:
            reasons[group.name] = f"kind {group.kind} is not among the kinds to prune"
        elif pattern is not None:
            reasons[group.name] = f"protected by {pattern!r}"
        elif not group.exact and not inexact:
            reasons[group.name] = "; ".join(group.notes) or "removing its units is not the same as zeroing them"
        elif group.size <= low:
            reasons[group.name] = f"its size {group.size} is not above the minimum {low}"
        elif len(permitted_sizes(group, round_to, low)) == 1:
            reasons[group.name] = f"no size below {group.size} is a multiple of {round_to} and at least {low}"
    return reasons


def _clusters(
    graph: Graph, left_out: Mapping[str, str], round_to: int, minimum: Minimum
) -> tuple[list[Cluster], list[str]]:
    inside = [g.name for g in graph.groups if g.name not in left_out]
    notes: list[str] = []
    for names in graph.cosize:
        free = [n for n in names if n in inside]
        if free and len(free) < len(names):
            missing = next(n for n in names if n not in inside)
            notes.append(f"{', '.join(free)}: may differ in size from {missing}, which keeps its size")
    clusters: list[Cluster] = []
    for members in together(graph, inside):
        sizes = permitted_sizes(members[0], round_to, least(members[0], minimum))
        for other in members[1:]:
            sizes = np.intersect1d(sizes, permitted_sizes(other, round_to, least(other, minimum)))
        clusters.append(Cluster(members, sizes))
    return clusters, notes


def together(graph: Graph, names: Collection[str]) -> list[tuple[Group, ...]]:
    """The named groups, those that keep equal sizes in one tuple; in the graph's order."""
    sets = {name: {name} for name in names}
    for equal in graph.cosize:
        union = set[str]().union(*(sets[n] for n in equal if n in sets))
        for name in union:
            sets[name] = union
    found: list[tuple[Group, ...]] = []
    done: set[str] = set()
    for group in graph.groups:
        if group.name in sets and group.name not in done:
            members = tuple(g for g in graph.groups if g.name in sets[group.name])
            assert len({g.size for g in members}) == 1, [g.name for g in members]
            done |= sets[group.name]
            found.append(members)
    return found


def _units(clusters: Sequence[Cluster]) -> Callable[[Ints], float]:
    """Counts the units of groups that may shrink, in every lane, at the clusters' sizes."""
    lanes = np.array([sum(g.lanes for g in c.groups) for c in clusters], dtype=np.int64)
    return lambda sizes: float((lanes * sizes).sum())


def _full(clusters: Sequence[Cluster]) -> Ints:
    """The clusters' sizes in the dense model."""
    return np.array([c.groups[0].size for c in clusters], dtype=np.int64)


def _reach(space: Choices, target: Target) -> Ints:
    graph, clusters, steps = space.graph, space.clusters, space.steps
    kinds, round_to, notes = (space.settings[name] for name in ("kinds", "round_to", "notes"))
    inside = {g.name for c in clusters for g in c.groups}
    keep = {name: size for name, size in space.full.items() if name not in inside}
    cost: Callable[[Ints], float]
    if target.metric == COUNTED:
        cost = _units(clusters)
        dense = round(cost(_full(clusters)))
    else:
        polynomial = graph.macs if target.metric == "macs" else graph.params
        cost, dense = Cost(polynomial, clusters, keep), round(polynomial.evaluate(graph.sizes()))
    budget = target.budget(dense)
    sizes = fit_budget(clusters, steps, cost, budget)
    if sizes is None:
        smallest = cost(sizes_after(clusters, steps, 0))
        others = [k for k in KINDS if k not in kinds and any(g.kind == k for g in graph.groups)]
        remedy = f", or add kinds ({', '.join(others)})" if others else ""
        raise TargetError(
            f"target {target} ({human(budget)} of {human(dense)} {target.metric}) cannot be reached: the smallest "
            f"reachable with kinds {','.join(kinds)} and round_to {round_to} is {target.metric}="
            f"{np.ceil(smallest / dense * 1e4) / 1e4:g} ({human(smallest)}); ask for more, lower the minimum{remedy}"
        )
    reached = cost(sizes)
    assert reached <= budget * (1 + 1e-9), (reached, budget)
    if reached < 0.99 * budget:
        notes.append(
            f"obtained {target.metric}={reached / dense:.4f} for {target}: no rounding step fits into what is left"
        )
    return sizes
