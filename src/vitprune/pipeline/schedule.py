"""Score, allocate, shrink and refit, in one step or in several on the way to the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from vitprune.allocate import Target, allocate
from vitprune.allocate.allocate import wanted_kinds
from vitprune.allocate.depth import gone_with
from vitprune.compose import same_groups
from vitprune.errors import TargetError
from vitprune.latency import Timing, allocate_latency
from vitprune.pipeline.carry import carry_, dense_scores
from vitprune.plan import Plan
from vitprune.progress import Progress, Silent
from vitprune.refit import refit
from vitprune.rotate import Rotated, basis_settings, ordered
from vitprune.score import Scores, score
from vitprune.score.over_domains import check_way, combined, parts_of
from vitprune.score.registry import lookup
from vitprune.shrink import shrink
from vitprune.shrink.keep import keep_from
from vitprune.trace import trace
from vitprune.trace.graph import Graph


@dataclass(frozen=True, slots=True)
class Schedule:
    """How units are ranked, and in how many steps the target is reached."""

    method: str = "magnitude-l2"
    seed: int = 0
    steps: int = 1
    refits: bool = True  # between the steps, where there are images
    reduction: str = "default"  # see `vitprune.score.registry.score`
    normalisation: str = "none"
    timing: Timing = field(default_factory=Timing)  # of a latency target
    over: str = "pooled"  # how the scores of several domains become one: see `vitprune.score.over_domains`

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TargetError(f"steps must be at least 1, but got {self.steps}")
        check_way(self.over, self.method)


def scored(
    model: nn.Module,
    graph: Graph,
    schedule: Schedule,
    batches: Iterable[Any] | None,
    kinds: Sequence[str],
    rotated: Rotated | None = None,
) -> Scores:
    """The scores of a model's units; of one that is `rotated`'s, every rotated lane in falling order."""
    how = {"reduction": schedule.reduction, "normalisation": schedule.normalisation}
    if schedule.over == "pooled":
        return ordered(score(graph, model, schedule.method, schedule.seed, batches, kinds, **how), rotated)
    found = [score(graph, model, schedule.method, schedule.seed, p, kinds, **how) for p in parts_of(batches)]
    return ordered(combined(found, schedule.over, [g.name for g in graph.groups if g.kind in kinds]), rotated)


def in_steps(
    model: nn.Module,
    graph: Graph,
    target: Target | None,
    schedule: Schedule,
    example: tuple[Any, ...],
    batches: Iterable[Any] | None,
    settings: Mapping[str, Any],
    *,
    rotated: Rotated | None = None,
    scores: Scores | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, nn.Module]:
    """The plan of the dense `model`, and the model shrunk by it; the last refit is left to the caller.

    Step k of K goes to the budget (or share) r^(k/K) for a target r, the last one exactly to it; on the way to a
    latency those MACs count that the plan of a single step has. Every step after the first scores the model that the
    step before left, after a refit of that to the *dense* model's outputs; it removes units of that model only. All
    settings mean what they mean in one step: sizes, rounding and shares are those of the dense model.

    example: arguments that `graph` was traced with. settings: further arguments of `allocate`. rotated: what `model` is
    the module of, if it is the dense one in another basis; that basis stays for all steps, its dims going last
    first. scores: `scored` of the whole model, where that is done.

    Raises TargetError for a target that is malformed or out of reach, before the first step; OracleError when the last
    model differs from the masked dense one.
    """
    said, steps = progress or Silent(), schedule.steps
    kinds = wanted_kinds(settings.get("kinds"), settings.get("ratios") or ())

    def decided(found: Scores, within: Plan | None) -> Plan:
        if target is not None and target.metric == "latency":
            rules = {**settings, "timing": schedule.timing, "within": within, "progress": said}
            return allocate_latency(model, graph, found, target, example, **rules)
        return allocate(graph, found, target, within=within, **settings)

    if scores is None:
        scores = scored(model, graph, schedule, batches, kinds, rotated)
    plan = decided(scores, None)  # fails at once for a target that is out of reach
    way = target
    if target is not None and target.metric == "latency":
        way = Target("macs", plan.obtained["macs"]["ratio"])
    if steps > 1:
        plan = _allocate(graph, scores, way, settings, 1 / steps, None)
    small = shrink(model, graph, plan, check=steps == 1, example=example)
    stuck: set[str] = set()
    for step in range(2, steps + 1):
        if batches is not None and schedule.refits:
            refit(model, small, graph, plan, batches, progress=said)
        got = ", ".join(f"{name}={plan.obtained[name]['ratio']:.4f}" for name in ("macs", "params"))
        said.line(f"step {step - 1} of {steps}: {got}")
        now = trace(small, example)
        found = scored(small, now, schedule, batches, kinds)
        placed = ordered(dense_scores(found, plan, graph, same_groups(now, graph)), rotated)
        stuck |= {n for n in set(graph.sizes()) - set(placed) if plan.groups[n].kept_size > 1}
        further = (
            decided(placed, plan) if step == steps else _allocate(graph, placed, way, settings, step / steps, plan)
        )
        smaller = shrink(model, graph, further, check=step == steps, example=example)
        carry_(smaller, small, keep_from(graph, further), keep_from(graph, plan))
        plan, small = further, smaller
    plan = replace(plan, settings={**plan.settings, **basis_settings(rotated)})
    return _recorded(plan, schedule, stuck, graph), small


def _allocate(
    graph: Graph, scores: Any, target: Target | None, settings: Mapping[str, Any], share: float, within: Plan | None
) -> Plan:
    """The plan for a share of the way."""
    ratios = {k: v**share for k, v in (settings.get("ratios") or {}).items()}
    layers = {k: v**share for k, v in (settings.get("layer_ratios") or {}).items()}
    given = {**settings, "ratios": ratios, "layer_ratios": layers}
    return allocate(graph, scores, None if target is None else part_way(target, graph, share), within=within, **given)


def part_way(target: Target, graph: Graph, share: float) -> Target:
    """The target at a share of the way from the dense cost to it, in equal factors."""
    if share == 1:
        return target
    if not target.absolute:
        return replace(target, value=target.value**share)
    dense = graph.cost()[("macs", "params").index(target.metric)]
    return replace(target, value=dense * (target.value / dense) ** share)


def _recorded(plan: Plan, schedule: Schedule, stuck: set[str], graph: Graph) -> Plan:
    gone = [name for name, group in plan.groups.items() if not group.kept_size]
    stuck -= {*gone_with(graph, gone), *plan.settings["not_pruned"]}
    notes = [
        f"{name}: the smaller model's trace has no such group; it kept its size from then on" for name in sorted(stuck)
    ]
    if gone and "data" not in lookup(schedule.method).info.needs:
        notes.append(
            f"{len(gone)} whole branches were chosen by {schedule.method}, which sees no images and says little of "
            "them; refit-error, energy and fisher see what a branch does"
        )
    about = {"seed": schedule.seed, "steps": schedule.steps}
    return replace(plan, method=schedule.method, settings={**plan.settings, **about}).noted(notes)
