"""What masks chose, with weights fitted in closed form instead of those trained under the masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vitprune.data import Batches
from vitprune.evaluate import accuracy
from vitprune.plan import Plan
from vitprune.progress import Progress
from vitprune.refit import refit
from vitprune.shrink import shrink
from vitprune.trace.graph import Graph


def better_weights(
    trained: nn.Module,
    dense: nn.Module,
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any],
    val: Batches,
    *,
    example: tuple[Any, ...],
    device: str = "cpu",
    progress: Progress,
) -> tuple[nn.Module, list[str]]:
    """The better model of two with the plan's sizes, by top-1 on validation images, and notes for the plan.

    `trained` comes from a search under masks. The other is `dense` (in the basis that the search began in) cut by the
    plan, its layers refitted to the dense outputs on `batches`: a search that is short spends its steps on closing and
    changing units, and leaves weights that are far from what its own choice permits. Of two that are equal the trained
    one stays. Neither model that is given is changed.
    """
    progress.line("masks: refitting the dense weights to the sizes that were found")
    fitted, notes = shrink(dense, graph, plan, example=example), list[str]()
    refit(dense, fitted, graph, plan, batches, progress=progress, notes=notes)
    here, there = accuracy(trained, val, device), accuracy(fitted, val, device)
    shares = (
        f"{100 * there.top1:.2f} % of {there.n:,} validation images with the dense weights, refitted, and "
        f"{100 * here.top1:.2f} % with those trained under masks"
    )
    if there.top1 <= here.top1:
        return trained, [f"{shares}: the trained ones are kept"]
    return fitted, [*notes, f"{shares}: the refitted ones are kept"]
