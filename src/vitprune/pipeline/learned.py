"""`prune --method masks` and `vtp`: the stage that trains masks instead of computing scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from vitprune.allocate.target import Target
from vitprune.data import Data
from vitprune.errors import listed
from vitprune.latency import Timing
from vitprune.masks import MaskError, MaskSettings, Pressure, train_masks
from vitprune.masks.vectors import Sharing
from vitprune.masks.vtp import KINDS as VTP_KINDS
from vitprune.masks.vtp import L1
from vitprune.pipeline.begin import Begun
from vitprune.plan import Plan
from vitprune.progress import Progress
from vitprune.recover import History, TrainSettings, Upkeep
from vitprune.trace.graph import Graph

METHODS = ("masks", "vtp")


@dataclass(frozen=True, slots=True)
class Learned:
    """How masks are trained; what is to be removed stands in `PruneSettings`."""

    search: TrainSettings = field(default_factory=lambda: TrainSettings(lr=1e-4))
    warmup: TrainSettings | None = None
    mask_lr: float | None = None  # None: see `MaskSettings`; for VTP that of the weights
    weight: float | None = None  # of the cost, instead of a target
    cost: str | None = None  # that has the weight: macs (as None), params or latency
    rate: float | None = None  # VTP: share of gates to close, instead of a target
    l1: float = L1
    start: str = "auto"  # of `pipeline.begin.STARTS`
    closings: int = 1  # VTP: thresholds, see `Pressure`
    sharing: Sharing = "residual"
    freeze: tuple[str, ...] = ()
    relaxation: str = "straight-through"


def mask_settings(
    method: str,
    how: Learned,
    target: Target | None,
    *,
    kinds: tuple[str, ...] | None,
    round_to: int,
    minimum: Mapping[str, int],
    protect: tuple[str, ...],
) -> MaskSettings:
    """The settings of the search, without fine-tuning. Raises MaskError for options that do not go together."""
    if method == "vtp":
        if how.weight is not None:
            raise MaskError("vtp takes a rate or a target, no weight of the cost; use the method masks")
        if how.cost is not None:
            raise MaskError(f"vtp has no cost in its loss, but got the cost {how.cost}; use the method masks")
        pressure = Pressure(rate=how.rate, target=target, l1=how.l1, closings=how.closings)
        relaxation, kinds = "scale", kinds or VTP_KINDS
    elif how.rate is not None:
        raise MaskError("a rate is for the method vtp; masks take a target or a weight of the cost")
    else:
        if target is not None and how.cost not in (None, target.metric):
            raise MaskError(f"a target names its own cost, but got {target} and the cost {how.cost}; leave one out")
        pressure, relaxation = Pressure(how.cost or "macs", how.weight, target), how.relaxation
    usual = how.search.lr if method == "vtp" else None
    return MaskSettings(
        pressure,
        how.search,
        how.warmup,
        None,
        kinds,
        how.sharing,
        how.freeze,
        protect,
        usual if how.mask_lr is None else how.mask_lr,
        relaxation,
        round_to,
        minimum,
    )


def learn(
    begun: Begun,
    teacher: nn.Module | None,
    graph: Graph,
    data: Data,
    settings: MaskSettings,
    method: str,
    *,
    example: tuple[Any, ...],
    device: str,
    folder: Path,
    upkeep: Upkeep | None,
    timing: Timing,
    progress: Progress,
) -> tuple[Plan, nn.Module, Mapping[str, History]]:
    """The plan that masks end with, the shrunk model, and how the phases went; the model of `begun` is changed."""
    result = train_masks(
        begun.model,
        graph,
        data.train,
        data.val,
        settings,
        example=example,
        device=device,
        teacher=teacher,
        start=begun.start,
        checkpoint_dir=folder,
        upkeep=upkeep,
        timing=timing,
        progress=progress,
    )
    notes: list[str] = []
    if result.behind:
        names = listed(list(result.behind), 3)
        notes.append(
            f"{sum(result.behind.values()):,} elements of {len(result.behind)} parameters ({names}) were masked, but "
            "cannot be removed, as other layers use the same channels"
        )
    plan = result.plan.noted(notes)
    whole = "rotated" if begun.basis["rotated"] else "dense"
    about = {**plan.settings, **begun.basis, "start": whole if begun.start is None else "score"}
    about["behind"] = dict(result.behind)
    return replace(plan, method=method, settings=about), result.model, result.histories
