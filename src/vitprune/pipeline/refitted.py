"""What goes on after a search: what masks chose, as trained or refitted, or what scores had chosen before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitprune.data import Batches
from vitprune.evaluate import accuracy
from vitprune.plan import Plan
from vitprune.progress import Progress
from vitprune.refit import refit
from vitprune.shrink import shrink
from vitprune.trace.graph import Graph

TRAINED, REFITTED = "trained", "refitted"  # weights behind the sizes that masks found
MASKS, SCORES = "masks", "scores"  # what chose the units


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The model that goes on."""

    model: nn.Module
    plan: Plan  # its settings say `weights` and `units`, and its notes why

    @property
    def said(self) -> str:
        """Why, as a note."""
        return str(self.plan.settings["notes"][-1])


def better_model(
    trained: nn.Module,
    dense: nn.Module,
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any],
    val: Batches,
    *,
    start: tuple[Plan, nn.Module] | None = None,
    example: tuple[Any, ...],
    device: str = "cpu",
    progress: Progress,
) -> Kept:
    """The best of two or three models by top-1 on validation images; of equal ones the first.

    `trained` comes from a search under masks that chose `plan`. The second is `dense` (in the basis that the search
    began in) cut by the plan, its layers refitted to the dense outputs on `batches`: a search that is short spends its
    steps on closing and changing units, and leaves weights that are far from what its own choice permits. The third is
    `start`, the plan and the refitted model that the search began with, if other units were chosen since: not every
    search finds better ones. If the same were chosen, it is the second. No model that is given is changed.
    """
    changed = start is None or start[0].groups != plan.groups
    if start is not None and not changed:
        fitted, notes = start[1], _notes(start[0])
    else:
        progress.line("masks: refitting the dense weights to the sizes that were found")
        fitted, notes = shrink(dense, graph, plan, example=example), []
        refit(dense, fitted, graph, plan, batches, progress=progress, notes=notes)
    here, there = accuracy(trained, val, device), accuracy(fitted, val, device)
    shares = (
        f"{100 * there.top1:.2f} % of {there.n:,} validation images with the dense weights, refitted, and "
        f"{100 * here.top1:.2f} % with those trained under masks"
    )
    best = max(here.top1, there.top1)
    if start is not None and changed:
        before = accuracy(start[1], val, device).top1
        shares += f"; {100 * before:.2f} % with the units that scores chose before the search"
        if before > best:
            chosen = replace(plan, groups=start[0].groups, obtained=start[0].obtained)
            return _kept(start[1], chosen, REFITTED, SCORES, [*_notes(start[0]), f"{shares}: these are kept"])
    if here.top1 >= best:
        return _kept(trained, plan, TRAINED, MASKS, [f"{shares}: the trained ones are kept"])
    return _kept(fitted, plan, REFITTED, MASKS, [*notes, f"{shares}: the refitted ones are kept"])


def _notes(plan: Plan) -> list[str]:
    """What was remarked of the plan, and of the refit of its model."""
    return list(plan.settings.get("notes", ()))


def _kept(model: nn.Module, plan: Plan, weights: str, units: str, notes: list[str]) -> Kept:
    settings = {**plan.settings, "weights": weights, "units": units}
    if units == SCORES and "behind" in settings:
        settings["behind"] = {}
    return Kept(model, replace(plan, settings=settings).noted(notes))
