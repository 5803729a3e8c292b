"""What a search is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitprune.allocate import Scope, Target
from vitprune.latency import Timing
from vitprune.pipeline.choose import Auto, chosen_method, chosen_scope
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.recover import TrainSettings
from vitprune.search import FRACTIONS, PERS, SearchError
from vitprune.search.sensitivity import check_fractions
from vitprune.search.space import Per

STUDIES = ("bayes", "nsga2")  # methods whose trials many workers can share
METHODS = ("ratio-search", "sensitivity", *STUDIES)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Goal, method and limits of a search, and what every probe is made with."""

    max_drop: float | None = None  # points of top-1 that may be lost: the smallest model is wanted
    target: Target | None = None  # or what the model may cost: the best one is wanted
    cost: str = "macs"  # what is to be small at a drop: macs, params or latency
    confident: bool = False  # see `Goal`
    method: str = "ratio-search"  # one of METHODS
    per: Per = "module"  # see `space_of`; "sensitivity" has every kind in every block on its own
    fractions: tuple[float, ...] = FRACTIONS  # of "sensitivity": what is removed of each, at first
    score: str = "auto"  # see `chosen_method`
    scope: Scope | Auto = "auto"  # how units compete within an axis
    kinds: tuple[str, ...] | None = None  # see `allocate`
    round_to: int = 8
    minimum: Mapping[str, int] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    rotate: bool = True
    refit: bool = True
    calibration: int = 512  # training images, without labels
    latency_batch: int = 1
    threads: int | None = None
    probe: TrainSettings | None = None  # a short training of every probe; None: none
    trials: int | None = None  # probes at most; of all workers
    minutes: float | None = None  # that probes may take; added up over workers
    storage: str | None = None  # of a study: see `vitprune.search.storage`; None: a file in the search's folder
    study: str | None = None  # its name in the storage; None: by goal and method
    baselines: bool = True  # fixed ratios under the same goal, beside

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SearchError(f"the method of a search must be one of {', '.join(METHODS)}, but got {self.method!r}")
        if self.per not in PERS:
            raise SearchError(f"shares are searched per {', '.join(PERS)}, but got {self.per!r}")
        check_fractions(self.fractions)
        for name, value in (("trials", self.trials), ("minutes", self.minutes)):
            if value is not None and value <= 0:
                raise SearchError(f"a search needs {name} above 0, but got {value:g}")

        shared = self.method in STUDIES
        if shared and self.trials is None and self.minutes is None:
            raise SearchError(
                f"{self.method} goes on until its limits, but has none; give --trials or --budget-minutes"
            )
        if not shared and (self.storage is not None or self.study is not None):
            raise SearchError(f"--storage and --study are for {' and '.join(STUDIES)}, but the method is {self.method}")

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> SearchSettings:
        """What decides a probe, as a search's folder holds it; goal, method and limits are left open."""
        given = dict(fields)
        for name in ("kinds", "protect"):
            given[name] = tuple(given[name])
        given["probe"] = None if given["probe"] is None else TrainSettings.from_json(given["probe"])
        return SearchSettings(**given)

    def resolved(self) -> SearchSettings:
        """The settings with the names that "auto" stands for. Raises ScoreError for an unknown score."""
        score = chosen_method(self.score, self.calibration > 0)
        return replace(self, score=score, scope=chosen_scope(self.scope, score))

    @property
    def timing(self) -> Timing:
        """How a latency is measured."""
        return Timing(self.latency_batch, self.threads)

    def pruning(self, shares: Mapping[str, float]) -> PruneSettings:
        """The settings by which `run_prune` makes the model whose groups (pattern -> share) keep these shares."""
        return PruneSettings(
            None,
            method=self.score,
            scope=self.scope,
            kinds=self.kinds,
            round_to=self.round_to,
            minimum=self.minimum,
            protect=self.protect,
            rotate=self.rotate,
            refit=self.refit,
            calibration=self.calibration,
            layer_ratios=tuple(shares.items()),
        )
