"""Warm-up, search, shrink, fine-tune: masks learned beside the weights, from a dense model to a small one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.allocate import Scope, allocate
from vitprune.data.batches import Batches
from vitprune.differences import differing
from vitprune.files import write_text
from vitprune.latency import Clock, Timed, Timing
from vitprune.masks.check import on_model
from vitprune.masks.closing import close_share
from vitprune.masks.cost import RAMP
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import RELAXATIONS
from vitprune.masks.search import Search
from vitprune.masks.settings import MaskSettings
from vitprune.masks.start import Start, check_start
from vitprune.models.loaded import logits, plain
from vitprune.modes import evaluating
from vitprune.plan import Plan
from vitprune.processes import is_main, rank, world
from vitprune.progress import Progress, Silent
from vitprune.recover import History, TrainSettings, Upkeep, fit
from vitprune.recover.together import gathered, wait
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
    start: Start | None = None,
    checkpoint_dir: Path | None = None,
    upkeep: Upkeep | None = None,
    timing: Timing | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> MaskResult:
    """The smaller model that masks and weights, trained together, end with. `model` is changed: it was trained too.

    `model` may be wrapped by `torch.compile`; what comes out is not.

    graph, example: the model's trace, and the arguments that it was made with. teacher: for all phases. With
    `checkpoint_dir` a run that was stopped goes on from the last checkpoint of the phase that it was in, on the CPU
    bit for bit. upkeep: of all phases, each with its own folder of logs.

    With a target, the last tenth of the search has its sizes; where it ends before (`patience`), the units that are
    missing or too many are chosen by importance. So the plan is at most the target and within 1 % of it or one rounding
    step. For latency a table of the model's times is measured before the search, and its plan after it, until a target
    is met: see `allocate_latency`, also for `timing` and `clock`.

    start: a pruned model that the search begins with, at the target from its first step; `model` is then the one that
    it was cut from (the dense one, or that in another basis).

    Raises MaskError when the masks collapse, or for settings that make no sense; TargetError when the target cannot be
    reached; TrainError as `fit`; OracleError when the shrunk model differs from the masked one.

    Several processes (see `fit`) train all phases together, and must end the search with the same plan.
    """
    said, histories = progress or Silent(), dict[str, History]()

    def phase(name: str, module: nn.Module, how: TrainSettings, hook: Search | None = None) -> None:
        said.line(f"masks: {name}")
        kept = upkeep or Upkeep()
        histories[name] = fit(
            module,
            train,
            val,
            how,
            device=device,
            hook=hook,
            teacher=teacher,
            checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / name,
            upkeep=replace(kept, log_dir=None if kept.log_dir is None else kept.log_dir / name),
            progress=said,
        )

    _check_folder(checkpoint_dir, settings, device)
    model.to(device)
    if start is not None:
        check_start(settings)
        start.weights_(plain(model), graph)
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
        lr=settings.rate(start is not None),
        seed=settings.search.seed,
    )
    try:
        for name, why in gates.left.items():
            said.line(f"not masked: {name}: {why}")
        timed = None
        if settings.pressure.measured == "latency":
            timed = _timed(gates, settings, example, timing, clock, device, said)
        elif settings.pressure.target is not None:
            projected(gates, settings)  # fails at once for one that is out of reach
        how = settings.searching()
        if start is not None:
            start.masks_(gates)
        steps = how.epochs * steps_per_epoch(train, how)
        search = Search(gates, settings.pressure, steps, timed, ramp=RAMP if start is None else 0.0)
        phase("search", model, how, search)
        plan, done = projected(gates, settings, timed), histories["search"]
        search.check_alive(
            len(done.epochs) * (search.steps // how.epochs) - 1, done, val.size, _classes(model, example)
        )
        _check_together(plan, device)
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
    device: str,
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
            device=device,
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
        close_share(gates, settings.pressure.rate)
    plan, target = gates.plan(), settings.pressure.target
    masked = {g for v in gates.vectors for g in v.groups}
    about = {**plan.settings, "sharing": settings.sharing, "relaxation": settings.relaxation}
    if target is None:
        how = {name: getattr(settings.pressure, name) for name in ("rate", "l1", "weight")}
        given = {name: value for name, value in how.items() if value}
        asked = {name: value for name, value in given.items() if name != "l1"}
        cost = {} if settings.pressure.weight is None else {"cost": settings.pressure.metric}
        plan = replace(plan, asked=asked, settings=about | given | cost)
        if timed is None:
            return plan
        with gates.closed() as model:
            return timed.measured(model, plan)
    scope: Scope = "local" if settings.relaxation == "top-k" and not gates.settled else "global"
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


def _classes(model: nn.Module, example: tuple[Any, ...]) -> int:
    with torch.no_grad(), evaluating(model):
        place = next(model.parameters()).device
        return int(logits(model(*(a.to(place) for a in example))).shape[-1])


def steps_per_epoch(train: Batches, how: TrainSettings) -> int:
    """Optimizer steps that `fit` takes in an epoch, in each of the processes."""
    train.set_shard(rank(), world())
    steps = -(-len(train) // how.accumulate)
    train.set_shard(0, 1)
    return steps


def _check_folder(folder: Path | None, settings: MaskSettings, device: str) -> None:
    """Raises MaskError, in all processes, when the folder holds a run with other settings; else leaves them there."""
    if folder is None:
        return
    path, mine = folder / "masks.json", json.loads(json.dumps(settings.to_json()))
    if path.exists():
        try:
            names = differing(json.loads(path.read_text(encoding="utf-8")), mine)
        except (OSError, ValueError) as error:
            raise MaskError(f"{path} cannot be read: {error}; delete {folder} to start over") from error
        if names:
            raise MaskError(
                f"{folder} holds a run with other settings of masks ({', '.join(names)}); give another folder, or "
                "delete it to start over"
            )
    wait(device)  # all have looked
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine, indent=1, sort_keys=True))


def _check_together(plan: Plan, device: str) -> None:
    """Raises MaskError, in all processes, when they did not come to the same plan."""
    plans = [Plan.from_json(text) for text in gathered(plan.to_json(), device)]
    for number, other in enumerate(plans):
        names = [name for name, group in other.groups.items() if group != plans[0].groups[name]]
        if names:
            raise MaskError(
                f"all processes must end the search with the same plan, but process {number} keeps other units of "
                f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} than process 0; they must run on devices "
                "of one kind, with the same libraries, from the same weights"
            )
