"""A copy of the model whose units stand in the order of their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from vitprune.arrays import Scores
from vitprune.rotate.work import Work
from vitprune.trace.graph import Graph
from vitprune.trace.permute import permute_


@dataclass(frozen=True, slots=True, eq=False)
class Arranged:
    """The same function with its units in another order."""

    model: nn.Module
    scores: Scores  # of the units in their new places
    names: tuple[str, ...]  # of the groups that were arranged
    left: Mapping[str, str]  # those that were not -> reason


def arrange(model: nn.Module, graph: Graph, scores: Scores, names: Iterable[str], batch: Any) -> Arranged:
    """A copy of the model in which units of the groups `names` stand in falling order of their scores, lane by lane.

    The same place then means the same rank in all of them. batch: images (B, C, H, W), or (images, labels), on which
    the outputs are compared; a group whose order matters to something else (rotary embedding) stays as it is.
    """
    work, found, done, left = Work(model, batch), dict(scores), list[str](), dict[str, str]()
    for name in names:
        order = np.argsort(-scores[name], axis=1, kind="stable")
        if work.apply(name, partial(permute_, graph[name], order, work.tensors), left):
            found[name] = np.take_along_axis(scores[name], order, axis=1)
            done.append(name)
    return Arranged(work.model, found, tuple(done), left)
