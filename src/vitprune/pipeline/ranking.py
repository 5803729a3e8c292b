"""A model's basis and the scores of its units: what runs of pruning that differ in the target alone have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitprune.allocate.allocate import wanted_kinds
from vitprune.arrays import Scores
from vitprune.data import Data
from vitprune.digest import weights_digest
from vitprune.pipeline.cells import key_of
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.schedule import Schedule, scored
from vitprune.progress import Progress
from vitprune.rotate import KINDS as ROTATED_KINDS
from vitprune.rotate import Rotated, rotate
from vitprune.trace.graph import Graph

LIMIT = 2 * 2**30  # bytes of rotated models that a study keeps in memory


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """What is known of a model before a target is."""

    rotated: Rotated | None  # None: the model stays in its own basis
    scores: Scores  # of the whole model's units, in the order of that basis

    @property
    def size(self) -> int:
        """Bytes of the rotated model."""
        return 0 if self.rotated is None else sum(p.numel() * p.element_size() for p in self.rotated.model.parameters())


def ranked(
    model: nn.Module,
    graph: Graph,
    settings: PruneSettings,
    schedule: Schedule,
    batches: Iterable[Any] | None,
    progress: Progress,
) -> Ranking:
    """Rotates what `settings` permit, a copy, and scores it. Raises as `rotate` and `score`."""
    kinds, rotated = wanted_kinds(settings.kinds, settings.ratios), None
    if settings.rotate and batches is not None and set(ROTATED_KINDS) & set(kinds):
        progress.line("rotating what can be rotated")
        rotated = rotate(model, graph, batches, kinds)
        for name, why in rotated.left.items():
            progress.line(f"not rotated: {name}: {why}")
    progress.line(f"scoring by {settings.method}")
    source = model if rotated is None else rotated.model
    return Ranking(rotated, scored(source, graph, schedule, batches, kinds, rotated))


class Rankings:
    """The rankings that the runs of one study in this process have made: each is made once, while memory permits."""

    def __init__(self, limit: int = LIMIT) -> None:
        """limit: bytes of rotated models; beyond it those go that were not used for longest, but never the last one."""
        self._limit = limit
        self._found: dict[str, tuple[Ranking, float]] = {}  # with its seconds; the last one used stands last
        self.saved_s = 0.0  # what the rankings that were taken from here had cost, each time

    def get(self, key: str, make: Callable[[], Ranking], progress: Progress) -> Ranking:
        """The ranking of this key; `make` makes it where there is none."""
        known = self._found.pop(key, None)
        if known is None:
            begun = time.monotonic()
            known = make(), time.monotonic() - begun
        else:
            progress.line("basis and scores: those of an earlier run of the same model and images")
            self.saved_s += known[1]
        self._found[key] = known
        while len(self._found) > 1 and sum(one.size for one, _ in self._found.values()) > self._limit:
            self._found.pop(next(iter(self._found)))
        return known[0]


def ranking_key(
    model: nn.Module, graph: Graph, settings: PruneSettings, seed: int, data: Data, reading: Mapping[str, Any]
) -> str:
    """By everything that decides a ranking: weights, images, and the settings that rotation and scores look at."""
    images = data.calibration
    about = ("method", "rotate", "reduction", "normalisation", "over", "calibration", "blend")
    return key_of(
        {
            "weights": weights_digest(model),
            "graph": graph.fingerprint,
            "data": dict(reading),
            "images": None if images is None else [images.identity(), images.batch_size],
            "kinds": wanted_kinds(settings.kinds, settings.ratios),
            "seed": seed,
            **{name: getattr(settings, name) for name in about},
        }
    )
