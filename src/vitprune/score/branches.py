"""What a whole branch does to the model's output, measured by leaving it out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vitprune.arrays import Floats
from vitprune.calibrate import images_of
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.score.types import ScoreInputs
from vitprune.trace.graph import Graph

IMAGES = 64  # a forward pass over them for every branch; the order of the branches hardly changes with more


def branch_scores(inputs: ScoreInputs, images: Iterable[Tensor], *, central: bool = False) -> dict[str, Floats]:
    """`effects` of the branches as scores; of none where branches are not wanted."""
    if not any(g.kind == "block" for g in inputs.wanted()):
        return {}
    found = effects(inputs.graph, inputs.model, images, central=central)
    return {name: np.full((1, 1), value) for name, value in found.items()}


class First:
    """Batches as they come; remembers those that hold the first `IMAGES` images."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.seen: list[Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        self.seen = []
        for batch in self.batches:
            room = IMAGES - sum(len(images) for images in self.seen)
            if room > 0:
                self.seen.append((batch if isinstance(batch, Tensor) else batch[0])[:room])
            yield batch


def effects(graph: Graph, model: nn.Module, batches: Iterable[Tensor], *, central: bool) -> dict[str, float]:
    """Name of a block group -> what its branch adds to the model's output: mean square over images, summed over it.

    The output is the class scores, or the first tensor of the result. central: the variance over images instead. A
    branch whose last module does not run by itself is left out.
    """
    blocks = [g for g in graph.groups if g.kind == "block"]
    device = next(iter(model.parameters())).device
    sums: dict[str, list[Tensor]] = {}
    count = 0
    with torch.no_grad(), evaluating(model):
        for batch in batches if blocks else ():
            images = images_of(batch, device)
            whole = logits(model(images)).double()
            count += len(images)
            for group in blocks:
                without = _without(model, group.modules[-1], images)
                if without is not None:
                    change = whole - without.double()
                    first, second = sums.setdefault(group.name, [torch.zeros_like(change[0]) for _ in range(2)])
                    first += change.sum(0)
                    second += change.square().sum(0)
    return {
        name: float((second / count - ((first / count).square() if central else 0)).clamp_min(0).sum())
        for name, (first, second) in sums.items()
    }


def _without(model: nn.Module, path: str, images: Tensor) -> Tensor | None:
    """The output with zeros in the place of one module's result; None when that module did not run."""
    ran: list[bool] = []

    def silence(_module: nn.Module, _args: Any, result: Any) -> Any:
        ran.append(True)
        return tree_map(lambda v: torch.zeros_like(v) if isinstance(v, Tensor) else v, result)

    handle = model.get_submodule(path).register_forward_hook(silence)
    try:
        output = logits(model(images))
    finally:
        handle.remove()
    return output if ran else None
