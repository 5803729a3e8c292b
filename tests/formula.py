"""A prober whose models are plans, and whose accuracy is a formula: searches on it take no time."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from vitprune.search import Prober, Quality, space_of
from vitprune.search.space import Shares
from vitprune.trace.graph import Graph

IMAGES = 100_000


def quality(points_lost: float, images: int = IMAGES) -> Quality:
    """Of a model that loses so many points, all of them among the first images."""
    right = np.arange(images) >= round(images * min(max(points_lost, 0.0), 100.0) / 100)
    bits = base64.b64encode(np.packbits(right).tobytes()).decode()
    return Quality(float(right.mean()), points_lost / 100, bits, images)


class Judge:
    """What the formula says of a plan."""

    def __init__(self, lost: Callable[[Mapping[str, int]], float]) -> None:
        self.lost, self.dense, self.calls = lost, quality(0.0), 0

    def __call__(self, plan: Any) -> Quality:
        self.calls += 1
        return quality(self.lost(plan.sizes()))


class Formula(Prober):
    """See the module."""

    def small(self, plan: Any) -> Any:
        return plan


def formula_prober(
    graph: Graph, lost: Callable[[Shares], float], *, per: Any = "module", kinds: tuple[str, ...] = ("mlp", "qk", "v"),
    round_to: int = 1, **more: Any,
) -> Formula:  # fmt: skip
    """A prober of `graph`; lost: points of accuracy as a function of the axes' shares."""
    scores = {g.name: np.random.default_rng(0).random((g.lanes, g.size)) for g in graph.groups}
    space = space_of(graph, [g.name for g in graph.groups if g.kind in kinds], per, round_to=round_to)
    judge: Any = Judge(lambda sizes: lost(space.of(graph, sizes)))
    return Formula(
        nn.Identity(), graph, scores, space, judge, None, (), kinds=kinds, scope="local", round_to=round_to, **more
    )  # fmt: skip
