"""What a score is given and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitprune.arrays import Scores
from vitprune.errors import VitpruneError
from vitprune.trace.graph import Graph, Group

__all__ = ["Method", "ScoreError", "ScoreInfo", "ScoreInputs", "Scores"]


class ScoreError(VitpruneError):
    """A score that is unknown, registered twice, or cannot be computed for this model."""


@dataclass(frozen=True, slots=True)
class ScoreInfo:
    """What a reader should know of a score before choosing it."""

    name: str
    summary: str  # one line
    citation: str  # arXiv id or reference, "" for none
    needs: tuple[str, ...] = ()  # any of "data", "labels", "gradients"
    follows: bool = True  # when units change places their scores go with them
    comparable: bool = False  # scores of all layers and kinds are in one unit: see the scope "per-cost"
    reduces: bool = True  # `reduction` says how a unit's slices become one number; False: it has its own way
    unscaled: bool = False  # a unit made larger by a factor and read with its inverse scores the same


@dataclass(frozen=True, slots=True)
class ScoreInputs:
    """Everything that a score may look at; it must leave the model as it found it."""

    graph: Graph
    model: nn.Module
    seed: int = 0
    batches: Iterable[Any] | None = None  # (images, labels) pairs; None when the method needs no data
    reduction: str = "default"  # how the slices behind a unit become one number: see `vitprune.score.reduce`
    kinds: frozenset[str] | None = None  # kinds that matter: groups of others may get any finite value; None: all

    def wanted(self) -> tuple[Group, ...]:
        """The groups whose scores will be looked at."""
        return tuple(g for g in self.graph.groups if self.kinds is None or g.kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Method:
    """A score: its record and the function that computes it."""

    info: ScoreInfo
    compute: Callable[[ScoreInputs], Scores]
