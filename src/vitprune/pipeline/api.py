"""The pipeline from Python, a step at a time or in one call; whole runs of the command line are in `api_runs`."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitprune import models, store
from vitprune import trace as tracing
from vitprune.allocate import Scope, Target, allocate
from vitprune.allocate.allocate import wanted_kinds
from vitprune.errors import ModelError, StoreError
from vitprune.latency import Timing
from vitprune.models import LoadedModel
from vitprune.pipeline.api_runs import compare, dg, export, search, sweep
from vitprune.pipeline.choose import Auto, chosen_method, chosen_scope
from vitprune.pipeline.opening import check_code, open_model, rebuild, trace_batch
from vitprune.pipeline.schedule import Schedule, in_steps
from vitprune.pipeline.versions import versions
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing
from vitprune.refit import Refitted
from vitprune.refit import refit as fit_again
from vitprune.rotate import KINDS as ROTATED_KINDS
from vitprune.rotate import Rotated, ordered
from vitprune.rotate import rotate as turn
from vitprune.score import Scores
from vitprune.score import score as compute_scores
from vitprune.score.types import ScoreError
from vitprune.shrink import shrink as carry_out
from vitprune.trace.graph import Graph

__all__ = ["allocate", "compare", "dg", "export", "load", "load_model", "prune", "refit", "rotate", "save"]
__all__ += ["score", "search"]
__all__ += ["shrink", "sweep", "trace"]


def load_model(
    spec: str, *, num_classes: int | None = None, device: str = "cpu", seed: int = 0, allow_module: str | None = None
) -> LoadedModel:
    """A dense or saved model with its source and preprocessing, by the MODEL text of the command line.

    num_classes: another count than the checkpoint's gives a new head, by `seed`. allow_module: as for `load`.

    Raises ModelError or StoreError when it cannot be had.
    """
    return open_model(spec, num_classes=num_classes, device=device, seed=seed, allow_module=allow_module).loaded


def trace(model: nn.Module | LoadedModel, example: Tensor | Sequence[Any] | None = None) -> Graph:
    """The groups, costs and limits of a model, from one example input (a batch of images, or all arguments).

    A LoadedModel needs no example. Raises ModelError when the model cannot be captured.
    """
    if isinstance(model, LoadedModel):
        given = models.example(model.preprocessing) if example is None else example
        return tracing.trace(model.model, trace_batch(given))
    if example is None:
        raise ModelError("trace needs an example input: a batch of images, or a tuple of all arguments")
    return tracing.trace(model, trace_batch(example))


def score(
    graph: Graph,
    model: nn.Module | LoadedModel | Rotated,
    method: str = "magnitude-l2",
    seed: int = 0,
    batches: Iterable[Any] | None = None,
    *,
    kinds: Iterable[str] | None = None,
    reduction: str = "default",
    normalisation: str = "none",
) -> Scores:
    """Importance of every unit of every group: name -> float64 (lanes, size), larger is more important.

    Of a rotated model, the scores of every rotated head are put in falling order: the rotation knows it better.
    kinds, reduction, normalisation: see `vitprune.score.registry.score`.

    Raises ScoreError for an unknown method or word, missing data, or weights that are not finite.
    """
    found = compute_scores(
        graph, _module(model), method, seed, batches, kinds, reduction=reduction, normalisation=normalisation
    )
    return ordered(found, model) if isinstance(model, Rotated) else found


def rotate(
    model: nn.Module | LoadedModel, graph: Graph, batches: Iterable[Any], kinds: Collection[str] = ROTATED_KINDS
) -> Rotated:
    """A copy of the model with the most important q/k and v dims and channels first; its outputs are the same.

    What it gives takes the model's place in `score`, `shrink` and `refit`. batches: images (B, C, H, W), or
    (images, labels) pairs whose labels are not looked at. kinds: of "qk", "v" and "residual".

    Raises RotateError without images, CalibrationError for activations that are not finite.
    """
    found = turn(_module(model), graph, batches, kinds)
    return replace(found, example=models.example(model.preprocessing)) if isinstance(model, LoadedModel) else found


def _module(model: nn.Module | LoadedModel | Rotated) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.model


def shrink(
    model: nn.Module | LoadedModel | Rotated, graph: Graph, plan: Plan, example: Tensor | Sequence[Any] | None = None
) -> nn.Module:
    """A new, smaller module of the same class, compared with the masked dense one on the example.

    A LoadedModel needs no example; for other modules it is what the model was traced with.

    Raises OracleError when the comparison fails, ModelError without an example or when a forward cannot be rewritten.
    """
    plan.check(graph)
    given = example
    if given is None and isinstance(model, LoadedModel):
        given = models.example(model.preprocessing)
    if given is None and isinstance(model, Rotated):
        given = model.example
    if given is None:
        raise ModelError("shrink needs the example input that the model was traced with")
    return carry_out(_module(model), graph, plan, example=trace_batch(given))


def refit(
    model: nn.Module | LoadedModel | Rotated, small: nn.Module, graph: Graph, plan: Plan, batches: Iterable[Any]
) -> tuple[Refitted, ...]:
    """Fits the layers of `small` behind removed units to the outputs of `model`, in place, in closed form.

    batches: images (B, C, H, W), or (images, labels) pairs whose labels are not looked at; some hundred images do. What
    should be known of the fit (too few images and how many would do, inputs that never vary) is said by warnings.

    Raises RefitError without images, or when the models take more than images.
    """
    notes: list[str] = []
    found = fit_again(_module(model), small, graph, plan, batches, notes=notes)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return found


def prune(
    model: nn.Module,
    example: Tensor | Sequence[Any],
    target: Target | str | None = "macs=0.5",
    *,
    method: str = "auto",
    seed: int = 0,
    scope: Scope | Auto = "auto",
    kinds: Iterable[str] | None = None,
    round_to: int = 8,
    minimum: int | Mapping[str, int] | None = None,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    batches: Iterable[Any] | None = None,
    refits: bool = True,
    rotates: bool = True,
    latency_batch: int = 1,
    threads: int | None = None,
    steps: int = 1,
) -> tuple[nn.Module, Plan]:
    """A smaller model of the same class, for an own training loop, and the plan that it was made by.

    `model` stays as it is. The result was compared with the masked dense model on the way; what should be known of
    the plan and the refit is in `plan.settings["notes"]`.

    method: "auto" is "output-error" where there are batches, else "magnitude-l2"; scope: "auto" is "per-cost" for
    scores that compare across layers, such as output-error, else "local". batches: calibration images, or (images,
    labels) pairs, for scores that need them and, unless `rotates` or `refits` is False, for `rotate` and `refit`.
    latency_batch, threads: images per forward pass, and CPU threads, that a target such as "latency=0.5x" is measured
    with.

    steps: more than one scores, shrinks and refits on the way to the target too, see `schedule.in_steps`.

    Raises TargetError for a target that is malformed or out of reach, ModelError when the model cannot be captured,
    OracleError when the comparison fails.
    """
    args = trace_batch(example)
    graph = tracing.trace(model, args)
    data = None if batches is None else list(batches)
    if data is not None and not data:
        raise ScoreError("batches must hold at least one batch of images, but are empty; give some, or leave them out")
    wanted = Target.parse(target) if isinstance(target, str) else target
    chosen = wanted_kinds(kinds, ratios or {})
    by = chosen_method(method, data is not None)
    settings = {
        "scope": chosen_scope(scope, by),
        "kinds": None if kinds is None else chosen,
        "round_to": round_to,
        "minimum": minimum,
        "protect": tuple(protect),
        "ratios": ratios,
        "layer_ratios": layer_ratios,
    }
    timing = Timing(latency_batch, threads)
    schedule = Schedule(by, seed, steps, refits, timing=timing)
    rotated = rotate(model, graph, data, chosen) if data is not None and rotates else None
    source = model if rotated is None else rotated.model
    plan, small = in_steps(source, graph, wanted, schedule, args, data, settings, rotated=rotated)
    plan = replace(plan, versions=versions())
    notes: list[str] = []
    if data is not None and refits:
        fit_again(source, small, graph, plan, data, notes=notes)
    return small, plan.noted(notes)


def save(
    folder: Path | str,
    model: nn.Module,
    plan: Plan,
    origin: LoadedModel | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """The folder that holds the model, its plan and what its input looks like.

    `origin` is what `load_model` gave for the dense model; without it, `plan.source` and `preprocessing` must be given.

    Raises StoreError when the folder is in use (see `force`) or cannot be written, PlanError without a source.
    """
    if origin is not None:
        plan = replace(plan, source=origin.source.to_json())
        preprocessing = preprocessing or origin.preprocessing
    if preprocessing is None:
        raise StoreError("save needs origin= (what load_model gave) or preprocessing=")
    plan = plan if plan.versions else replace(plan, versions=versions())
    return store.save(folder, model, plan, preprocessing, classes=classes, metrics=metrics, force=force)


def load(folder: Path | str, device: str = "cpu", *, allow_module: str | None = None) -> nn.Module:
    """The saved model in eval mode: the module class of its own library, with pruned widths.

    folder: one that vitprune saved, or "hub:OWNER/NAME[@REVISION]" of one on the Hugging Face hub (without "hub:" too,
    where nothing here has that name), of which safetensors, JSON and Markdown files alone are fetched.
    allow_module: "package.mod:factory" that may be imported and called, for a folder made from a module: source.

    Raises StoreError when the folder is incomplete, was edited, or no longer gives the stored probe output, or names a
    callable that was not allowed.
    """
    contents = store.read(store.local(folder))
    check_code(contents, allow_module)
    return store.load(contents, rebuild, device=device)
