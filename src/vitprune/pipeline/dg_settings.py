"""What a study of pruning and domain generalisation consists of, before any cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from vitprune.allocate import DEFAULT_KINDS, Scope, Target
from vitprune.errors import VitpruneError
from vitprune.pipeline.choose import Auto
from vitprune.pipeline.learned import METHODS as LEARNED
from vitprune.pipeline.learned import Learned
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.recover import TrainSettings
from vitprune.score.over_domains import WAYS, check_way
from vitprune.score.registry import METHODS, lookup

RATIO_OF = ("params", "macs", "units")
SCORES = ("hessian", "taylor", "magnitude-l1", "magnitude-l2", "lamp", "random")
EVERY_KIND = ("residual", "heads", "qk", "v", "mlp")
NARROW = 0.67  # ratios from here on need the residual width, too


class StudyError(VitpruneError):
    """A study that makes no sense as it was asked for."""


@dataclass(frozen=True, slots=True)
class Form:
    """A way to go from scores to a smaller model."""

    summary: str
    scope: Scope | Auto = "auto"
    kinds: tuple[str, ...] = EVERY_KIND
    rotate: bool = False
    refit: bool = False
    blend: float = 0.0  # see `PruneSettings`
    method: str | None = None  # its own; None: the study's scores, one after the other


DEFAULT = Form(
    "vitprune's own defaults: output-error per cost, rotated, refitted",
    kinds=DEFAULT_KINDS,
    rotate=True,
    refit=True,
    method="output-error",
)
FORMS: Mapping[str, Form] = {
    "grouped-global": Form("all groups of the dependency graph ranked together, as published", "global"),
    "isomorphic": Form("every kind of group loses the same share, units compete within their kind", "isomorphic"),
    "refit": Form("grouped-global, then the layers behind fitted in closed form", "global", refit=True),
    "default": DEFAULT,
    "blended": replace(
        DEFAULT, summary="as default, with a quarter of the calibration images blended with coloured noise", blend=0.25
    ),
    "masks": Form("masks learned while training, which spend half of the epochs", method="masks"),
}


@dataclass(frozen=True, slots=True)
class StudySettings:
    """Everything but models, domains, and where."""

    ratios: tuple[float, ...] = (0.5, 0.75, 0.95)  # shares that are removed
    ratio_of: Literal["params", "macs", "units"] = "params"
    scores: tuple[str, ...] = SCORES
    forms: tuple[str, ...] = ("grouped-global",)
    over: tuple[str, ...] = ("pooled",)  # of `vitprune.score.over_domains.WAYS`
    seeds: tuple[int, ...] = (0, 1, 2)
    dense: TrainSettings = field(default_factory=TrainSettings)  # the dense model's, without a seed
    tuning: TrainSettings | None = field(default_factory=TrainSettings)  # the pruned ones'; None: no fine-tuning
    rates: tuple[float, ...] = ()  # learning rates of `tuning` to choose from; none: its own
    from_scratch: bool = False  # the dense model begins with its library's initial weights
    distill: bool = False  # fine-tuning has the dense model as teacher
    round_to: int = 8
    calibration: int = 512
    control: bool = True  # beside every dense model itself: the same, fine-tuned without being pruned

    def __post_init__(self) -> None:
        for title, given, known in (
            ("ratios", self.ratios, None),
            ("scores", self.scores, METHODS),
            ("forms", self.forms, FORMS),
            ("over", self.over, WAYS),
            ("seeds", self.seeds, None),
        ):
            _check_list(title, given, known)
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise StudyError(f"ratios are shares that are removed, above 0 and below 1, but got {ratio:g}")
        for seed in self.seeds:
            if not isinstance(seed, int) or seed < 0:
                raise StudyError(f"seeds must be whole numbers, not negative, but got {seed!r}")
        if self.ratio_of not in RATIO_OF:
            raise StudyError(f"ratio-of must be one of {', '.join(RATIO_OF)}, but got {self.ratio_of!r}")
        if "pooled" not in self.over and any(FORMS[name].method is None for name in self.forms):
            for score in self.scores:  # those that see no images would have no cell at all
                check_way(self.over[0], score)
        if self.tuning is None and (self.rates or "masks" in self.forms):
            raise StudyError("learning rates to choose from, and masks, need epochs of fine-tuning, but got none")
        if "masks" in self.forms and self.ratio_of == "units":
            raise StudyError("masks are trained towards a cost, not a share of units; use --ratio-of params or macs")
        for rate in self.rates:
            if not rate > 0:
                raise StudyError(f"learning rates must be above 0, but got {rate:g}")
        if self.calibration < 1:
            raise StudyError(f"scores and refit need calibration images, but got {self.calibration}")

    def target(self, ratio: float) -> Target:
        """What stays, for a share that is removed."""
        return Target(self.ratio_of, round(1 - ratio, 9))

    def runs(self, name: str) -> tuple[tuple[str, str], ...]:
        """(score, way over domains) of every cell that the form of that name has at a ratio."""
        form = FORMS[name]
        if form.method is not None:
            ways = self.over if form.method not in LEARNED else ("pooled",)
            return tuple((form.method, way) for way in ways)
        pairs = [(score, way) for score in self.scores for way in self.over]
        return tuple((s, w) for s, w in pairs if w == "pooled" or "data" in lookup(s).info.needs)

    def pruning(self, name: str, score: str, over: str, ratio: float) -> PruneSettings:
        """The settings of the form of that name. Raises ScoreError for a way that the score cannot go."""
        form = FORMS[name]
        kinds = form.kinds
        if kinds == DEFAULT_KINDS and ratio >= NARROW:
            kinds = (*kinds, "residual")
        settings = PruneSettings(
            self.target(ratio),
            method=score,
            scope=form.scope,
            kinds=kinds,
            round_to=self.round_to,
            rotate=form.rotate,
            refit=form.refit,
            calibration=self.calibration,
            over=over,
            blend=form.blend,
        )
        if settings.method in LEARNED:
            assert self.tuning is not None  # see `__post_init__`
            half = max(1, self.tuning.epochs // 2)
            return replace(settings, learned=Learned(search=replace(self.tuning, epochs=half)))
        check_way(over, settings.method)
        return settings

    def facts(self) -> dict[str, Any]:
        """What a page says of the study, as JSON values."""
        return {
            "ratio_of": self.ratio_of,
            "dense_epochs": self.dense.epochs,
            "epochs": 0 if self.tuning is None else self.tuning.epochs,
            "from_scratch": self.from_scratch,
            "distill": self.distill,
            "control": self.control and self.tuning is not None,
            "round_to": self.round_to,
            "calibration": self.calibration,
        }


def _check_list(title: str, given: Sequence[Any], known: Mapping[str, Any] | None) -> None:
    if not given:
        raise StudyError(f"a study needs {title}, at least one, but got none")
    for one in given:
        if given.count(one) > 1:
            raise StudyError(f"{title} of a study must differ, but {one} stands there {given.count(one)} times")
        if known is not None and one not in known:
            near = get_close_matches(str(one), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise StudyError(f"{title} must be of {', '.join(known)}, but got {one!r}{hint}")
