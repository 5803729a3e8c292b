"""Warm-up, search, shrink, fine-tune: masks learned beside the weights, from a dense model to a small one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitprune.allocate import Scope, allocate
from vitprune.data.batches import Batches
from vitprune.latency import Clock, Timed, Timing
from vitprune.masks.check import on_model
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import RELAXATIONS
from vitprune.masks.search import Search
from vitprune.masks.settings import MaskSettings
from vitprune.plan import Plan
from vitprune.processes import world
from vitprune.progress import Progress, Silent
from vitprune.recover import History, TrainSettings, fit
from vitprune.trace.graph import Graph

# What a closed unit is worth, of its importance, when the latency solver chooses. It trades units by the time that they
# take, which the search has weighed already: without this factor it opened whole heads, which had been closed for long,
# for hidden units that were in use. Shipped ViT, 5 epochs on 1,000 images, latency=0.6x: 87.5 % top-1 at the end of the
# search, 50.5 % after the solver without and 87.7 % with the factor.
CLOSED = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class MaskResult:
    """What a run gave."""

    model: nn.Module  # shrunk, fine-tuned, in evaluation mode
    plan: Plan
    histories: Mapping[str, History]  # of "warm-up", "search", "fine-tuning", those that there were
    behind: Mapping[str, int]  # parameter name -> silenced elements that no plan can remove (see `Gates.behind`)


def train_masks(
    model: nn.Module,
    graph: Graph,
    train: Batches,
    val: Batches,
    settings: MaskSettings,
    *,
    example: tuple[Any, ...],
    device: str = "cpu",
    teacher: nn.Module | None = None,
    checkpoint_dir: Path | None = None,
    timing: Timing | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> MaskResult:
    """The smaller model that masks and weights, trained together, end with. `model` is changed: it was trained too.

    graph, example: the model's trace, and the arguments that it was made with. teacher: for all phases. With
    `checkpoint_dir` a run that was stopped goes on from the last whole epoch of the phase that it was in, on the CPU
    bit for bit.

    With a target, the masks at the end are within a few units of it; the units that are missing or too many are then
    chosen by importance, so that the plan is at most the target and within 1 % of it or one rounding step. For latency
    a table of the model's times is measured before the search, and its plan after it, until a target is met: see
    `allocate_latency`, also for `timing` and `clock`.

    Raises MaskError when the masks collapse, or for settings that make no sense; TargetError when the target cannot be
    reached; TrainError as `fit`; OracleError when the shrunk model differs from the masked one.
    """
    if RELAXATIONS[settings.relaxation].draws and world() > 1:
        raise MaskError(f"{settings.relaxation} masks draw in every process for itself; train them in one process")
    if settings.pressure.measured == "latency" and world() > 1:
        raise MaskError("latency is measured in one process; train masks for it in one, or let MACs be their cost")
    said, histories = progress or Silent(), dict[str, History]()

    def phase(name: str, module: nn.Module, how: TrainSettings, hook: Search | None = None) -> None:
        said.line(f"masks: {name}")
        histories[name] = fit(
            module,
            train,
            val,
            how,
            device=device,
            hook=hook,
            teacher=teacher,
            checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / name,
            progress=said,
        )

    _check_folder(checkpoint_dir, settings)
    model.to(device)
    if settings.warmup is not None:
        phase("warm-up", model, settings.warmup)
    gates = on_model(
        model,
        graph,
        settings.kinds,
        sharing=settings.sharing,
        freeze=settings.freeze,
        protect=settings.protect,
        round_to=settings.round_to,
        minimum=dict(settings.minimum),
        relaxation=RELAXATIONS[settings.relaxation](),
        lr=settings.mask_lr,
    )
    try:
        for name, why in gates.left.items():
            said.line(f"not masked: {name}: {why}")
        timed = None
        if settings.pressure.measured == "latency":
            timed = _timed(gates, settings, example, timing, clock, said)
        elif settings.pressure.target is not None:
            projected(gates, settings)  # fails at once for one that is out of reach
        how = settings.searching()
        phase("search", model, how, Search(gates, settings.pressure, how.epochs * len(train), timed))
        plan = projected(gates, settings, timed)
        small = gates.shrink(tuple(a.to(gates.alpha.device) for a in example), plan)
        behind = gates.behind(plan)
    finally:
        gates.close()
    if behind:
        said.line(f"masked but not removable: {sum(behind.values()):,} elements of {len(behind)} parameters")
    if settings.finetune is not None:
        phase("fine-tuning", small, settings.finetune)
    return MaskResult(small.eval(), plan, histories, behind)


def _timed(
    gates: Gates,
    settings: MaskSettings,
    example: tuple[Any, ...],
    timing: Timing | None,
    clock: Clock | None,
    progress: Progress,
) -> Timed:
    """The latency table of the masked groups. Raises TargetError for a target that is out of reach."""
    with gates.closed() as model:
        timed = Timed(
            model,
            gates.graph,
            tuple(a.to(gates.alpha.device) if isinstance(a, Tensor) else a for a in example),
            {g for v in gates.vectors for g in v.groups},
            round_to=settings.round_to,
            minimum=dict(settings.minimum),
            timing=timing,
            clock=clock,
            progress=progress,
        )
        if settings.pressure.target is not None:
            timed.check_reach(model, settings.pressure.target)
    return timed


def projected(gates: Gates, settings: MaskSettings, timed: Timed | None = None) -> Plan:
    """The plan of now; with a target, the plan by the masks' importance that meets it.

    timed: where latency counts, which is then measured.
    """
    if settings.pressure.rate is not None:
        theta = gates.relaxation.importance(gates.alpha.detach())
        gates.threshold = float(theta.sort().values[int(settings.pressure.rate * len(theta))]) * (1 - 1e-6)
        gates.refresh()
    plan, target = gates.plan(), settings.pressure.target
    masked = {g for v in gates.vectors for g in v.groups}
    about = {**plan.settings, "sharing": settings.sharing, "relaxation": settings.relaxation}
    if target is None:
        how = {"rate": settings.pressure.rate, "l1": settings.pressure.l1, "weight": settings.pressure.weight}
        given = {name: value for name, value in how.items() if value}
        asked = {name: value for name, value in given.items() if name != "l1"}
        cost = {} if settings.pressure.weight is None else {"cost": settings.pressure.metric}
        plan = replace(plan, asked=asked, settings=about | given | cost)
        if timed is None:
            return plan
        with gates.closed() as model:
            return timed.measured(model, plan)
    scope: Scope = "local" if settings.relaxation == "top-k" else "global"
    if timed is not None:
        with gates.closed() as model:
            fitted = timed.plan(model, gates.scores(CLOSED), target, scope)
    else:
        fitted = allocate(
            gates.graph,
            gates.scores(),
            target,
            scope=scope,
            kinds={gates.graph[g].kind for g in masked},
            round_to=settings.round_to,
            minimum=dict(settings.minimum),
            protect=[g.name for g in gates.graph.groups if g.name not in masked],
        )
    left = {**fitted.settings["not_pruned"], **gates.left}
    return replace(fitted, method="masks", settings={**about, **fitted.settings, "not_pruned": left})


def _check_folder(folder: Path | None, settings: MaskSettings) -> None:
    if folder is None:
        return
    path, text = folder / "masks.json", json.dumps(settings.to_json(), indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise MaskError(f"{folder} holds a run with other settings of masks; give another folder, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
