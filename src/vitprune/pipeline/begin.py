"""What masks begin with: the model that scores, rotation and refit make of the dense one, at the target."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from vitprune.allocate import allocate
from vitprune.arrays import Scores
from vitprune.errors import TargetError
from vitprune.latency import Timing, allocate_latency
from vitprune.masks import MaskError, MaskSettings, Start, check_start
from vitprune.masks.check import maskable
from vitprune.masks.gates import KINDS
from vitprune.masks.vectors import tied, ties
from vitprune.pipeline.choose import chosen_method, chosen_scope
from vitprune.pipeline.stages import WorkFolder
from vitprune.plan import Plan
from vitprune.progress import Progress
from vitprune.refit import refit
from vitprune.rotate import KINDS as ROTATED_KINDS
from vitprune.rotate import Rotated, RotateError, arrange, basis_settings, ordered, rotate
from vitprune.score import score
from vitprune.shrink import shrink
from vitprune.store.tensors import load_tensors_, save_tensors
from vitprune.trace.graph import Graph

BASIS = "basis.safetensors"  # of the work folder: the dense model's weights, in the basis that masks began in
STARTED = "start.safetensors"  # of the work folder: the same with the weights of the pruned model that masks began with
STARTS = ("auto", "score", "rotated", "dense")
SCORED = tuple(kind for kind in KINDS if kind != "heads")  # whole heads are left to the masks


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """What masks are trained on."""

    model: nn.Module  # the dense model, in another basis where that is possible
    start: Start | None  # what scores chose of it; None: all of it
    basis: Mapping[str, Any]  # for the plan: see `basis_settings`


def chosen_start(name: str, settings: MaskSettings, images: int) -> str:
    """ "score", "rotated" or "dense"; "auto" is the first of these that masks can begin with.

    images: how many there are to calibrate with. Raises MaskError for an unknown name, and where what is named cannot
    be.
    """
    if name not in STARTS:
        raise MaskError(f"what masks begin with must be one of {', '.join(STARTS)}, but got {name!r}")
    if name == "dense" or (name == "auto" and (images < 1 or settings.warmup is not None)):
        return "dense"
    if images < 1:
        raise MaskError("scores and rotation need calibration images, but got none; give --calibration 512 or so")
    if name != "rotated":
        try:
            check_start(settings)
            return "score"
        except MaskError:
            if name != "auto":
                raise
    return "rotated"


def begin_once(
    work: WorkFolder,
    name: str,
    model: nn.Module,
    graph: Graph,
    settings: MaskSettings,
    batches: Iterable[Any],
    example: tuple[Any, ...],
    *,
    progress: Progress,
    **more: Any,
) -> Begun:
    """As `begin`, which it calls, for `model`, whose place and weights it takes; what is in the work folder stays.

    name: of `chosen_start`, not "dense". `BASIS` is left there, too.
    """
    path, done = work.path / STARTED, work.result("mask-start")
    if done is None:
        if name == "score":
            begun = begin(model, graph, settings, batches, example, progress=progress, **more)
        else:
            begun = in_basis(model, graph, settings, batches, progress)
        save_tensors(work.path / BASIS, begun.model, {})
        done = {"basis": dict(begun.basis)}
        if (start := begun.start) is not None:
            start.weights_(begun.model, graph)
            save_tensors(path, begun.model, {})
            scores = {name: values.tolist() for name, values in start.scores.items()}
            done |= {"plan": start.plan.to_json(), "scores": scores}
        work.finish("mask-start", done)
    if "plan" not in done:
        load_tensors_(work.path / BASIS, model)
        return Begun(model, None, done["basis"])
    load_tensors_(path, model)
    scores = {name: np.asarray(values) for name, values in done["scores"].items()}
    return Begun(model, Start(Plan.from_json(done["plan"]), None, scores), done["basis"])


def begun_before(
    work: WorkFolder, dense: nn.Module, graph: Graph, example: tuple[Any, ...]
) -> tuple[Plan, nn.Module] | None:
    """The plan and the pruned model that `begin_once` left in the work folder; None if masks began with all units."""
    done = work.result("mask-start")
    if done is None or "plan" not in done:
        return None
    plan, model = Plan.from_json(done["plan"]), copy.deepcopy(dense)
    load_tensors_(work.path / STARTED, model)
    return plan, shrink(model, graph, plan, check=False, example=example)


def in_basis(
    model: nn.Module, graph: Graph, settings: MaskSettings, batches: Iterable[Any], progress: Progress
) -> Begun:
    """The whole model, in the basis whose last dims do least where masks decide of them.

    As it is, said in a line, where it cannot be rotated. Raises CalibrationError for activations that are not finite.
    """
    progress.line("masks: rotating what can be rotated")
    try:
        rotated = _rotated(model, graph, maskable(model, graph, settings), batches)
    except RotateError as error:
        progress.line(f"masks: beginning with the dense model as it is: {error}")
        rotated = None
    return Begun(model if rotated is None else rotated.model, None, basis_settings(rotated))


def _rotated(model: nn.Module, graph: Graph, masked: Collection[str], batches: Iterable[Any]) -> Rotated | None:
    """`rotate` of the kinds that masks decide of, if there are any."""
    turned = tuple(k for k in ROTATED_KINDS if any(g.kind == k and g.name in masked for g in graph.groups))
    return rotate(model, graph, batches, turned) if turned else None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The whole model in its basis, and what ranks its units; the same for every target."""

    model: nn.Module
    scores: Scores
    kinds: tuple[str, ...]  # that scores decide
    masked: frozenset[str]  # groups that masks decide of
    method: str  # of the scores
    basis: Mapping[str, Any]


def scored(
    model: nn.Module, graph: Graph, masked: frozenset[str], batches: Iterable[Any], *, seed: int, progress: Progress
) -> Scored | None:
    """The dense model, rotated where that is possible, with the scores of its units; None if masks leave them nothing.

    masked: see `maskable`. Raises as `rotate` and `score`.
    """
    chosen = tuple(k for k in SCORED if any(g.kind == k and g.name in masked for g in graph.groups))
    if not chosen:
        return None
    progress.line("masks: a first model by scores")
    rotated = _rotated(model, graph, masked, batches)
    source = model if rotated is None else rotated.model
    method = chosen_method("auto", images=True)
    scores = ordered(score(graph, source, method, seed, batches, chosen), rotated)
    return Scored(source, scores, chosen, masked, method, basis_settings(rotated))


def begin(
    model: nn.Module,
    graph: Graph,
    settings: MaskSettings,
    batches: Iterable[Any],
    example: tuple[Any, ...],
    *,
    seed: int,
    timing: Timing,
    progress: Progress,
) -> Begun:
    """The dense model, in another basis where that is possible, and what was cut from it and refitted.

    As `begin_with`, if there is something that scores can decide; else the dense model as it is. Raises as
    `maskable`, `scored` and `begin_with`.
    """
    found = scored(model, graph, maskable(model, graph, settings), batches, seed=seed, progress=progress)
    if found is None:
        progress.line("masks: nothing that scores decide; beginning with the dense model")
        return Begun(model, None, basis_settings(None))
    return begin_with(found, graph, settings, batches, example, timing=timing, progress=progress)


def begin_with(
    found: Scored,
    graph: Graph,
    settings: MaskSettings,
    batches: Iterable[Any],
    example: tuple[Any, ...],
    *,
    timing: Timing,
    progress: Progress,
) -> Begun:
    """What was scored, and what is cut from it at the target and refitted.

    Only groups are cut that masks of these settings decide. Where masks are tied across blocks, units are first put
    into the order of their scores, so that a mask stands for units of one rank, and the mean over the blocks counts.

    Nothing is cut where scores alone cannot come to the target, as they leave whole heads to the masks. Raises as
    `refit`.
    """
    target = settings.pressure.target
    assert target is not None  # see `check_start`
    source, scores, about, within = found.model, found.scores, dict(found.basis), graph
    if settings.sharing == "blocks":
        alike = ties(g for g in graph.groups if g.kind in found.kinds and g.name in found.masked)
        loose = [name for names in alike for name in names if name not in about["rotated"]]
        arranged = arrange(source, graph, scores, loose, next(iter(batches)))
        source, scores, within = arranged.model, _together(arranged.scores, alike), tied(graph, alike)
        about["arranged"] = sorted(arranged.names)
    rules: dict[str, Any] = {
        "kinds": found.kinds,
        "scope": chosen_scope("auto", found.method),
        "round_to": settings.round_to,
        "minimum": dict(settings.minimum),
        "protect": [g.name for g in graph.groups if g.kind in found.kinds and g.name not in found.masked],
    }
    try:
        if target.metric == "latency":
            plan = allocate_latency(source, within, scores, target, example, timing=timing, progress=progress, **rules)
        else:
            plan = allocate(within, scores, target, **rules)
    except TargetError as error:  # the search says itself what its masks cannot reach
        progress.line(f"masks: beginning with the whole model, as scores alone do not come to the target: {error}")
        return Begun(source, None, about)
    plan = replace(plan, settings={**plan.settings, **about})
    small, notes = shrink(source, graph, plan, example=example), list[str]()
    refit(source, small, graph, plan, batches, progress=progress, notes=notes)
    return Begun(source, Start(plan.noted(notes), small, scores), about)


def _together(scores: Scores, alike: Iterable[Sequence[str]]) -> Scores:
    """The scores, where groups share a mask the mean over them."""
    means = {name: np.mean([scores[n] for n in names], axis=0) for names in alike for name in names}
    return {**scores, **means}
