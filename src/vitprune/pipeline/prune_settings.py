"""What a run of pruning removes, and how it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitprune.allocate import Scope
from vitprune.allocate.target import Target
from vitprune.latency import Timing
from vitprune.masks import MaskError, MaskSettings
from vitprune.pipeline.begin import chosen_start
from vitprune.pipeline.choose import Auto
from vitprune.pipeline.learned import Learned, mask_settings


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """What to remove."""

    target: Target | None  # None: the ratios alone decide
    method: str = "auto"  # see `chosen_method`
    scope: Scope | Auto = "auto"  # see `chosen_scope`
    kinds: tuple[str, ...] | None = None  # see `allocate`
    round_to: int = 8
    minimum: Mapping[str, int] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    reduction: str = "default"  # of a unit's slices to one number
    normalisation: str = "none"  # of a group's scores before they are compared with others'
    rotate: bool = True  # change the basis of heads before dims are dropped, where the model permits it
    refit: bool = True  # fit the layers behind removed units to the dense model's outputs, in closed form
    calibration: int = 512  # training images, without labels, for scores that need data, for rotation and refit
    latency_batch: int = 1  # images per forward pass that a latency is of
    threads: int | None = None  # CPU threads that it is measured with; None: as torch has them
    layer_ratios: tuple[tuple[str, float], ...] = ()  # pattern of group names, share that stays
    steps: int = 1  # scored, shrunk and refitted anew in each
    learned: Learned = field(default_factory=Learned)  # for the methods "masks" and "vtp"
    over: str = "pooled"  # how the scores of several domains become one: see `vitprune.score.over_domains`
    blend: float = 0.0  # share of the calibration images that is blended with noise: see `vitprune.data.blend`

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `over` and `blend` only where they say something."""
        silent = {"over": "pooled", "blend": 0.0}
        return {name: value for name, value in asdict(self).items() if name not in silent or value != silent[name]}

    def without_scores(self) -> PruneSettings:
        """The settings of a method that trains masks. Raises MaskError for what only scores can follow."""
        for name, given, value in (
            ("fixed ratios", self.ratios or self.layer_ratios, dict(self.ratios or self.layer_ratios)),
            ("several steps", self.steps > 1, self.steps),
            ("a scope", self.scope != "auto", self.scope),
        ):
            if given:
                raise MaskError(
                    f"method {self.method} does not take {name}, as its masks choose by training, but got {value}; "
                    "leave it out, or prune by scores"
                )
        settings = self.mask_settings()
        start = chosen_start(self.learned.start, settings, self.calibration)
        refits = self.refit and self.calibration > 0 and settings.warmup is None
        images = self.calibration if start != "dense" or refits else 0
        return replace(self, rotate=False, refit=refits, calibration=images, learned=replace(self.learned, start=start))

    def mask_settings(self) -> MaskSettings:
        """See `pipeline.learned`."""
        return mask_settings(
            self.method,
            self.learned,
            self.target,
            kinds=self.kinds,
            round_to=self.round_to,
            minimum=self.minimum,
            protect=self.protect,
        )

    @property
    def timing(self) -> Timing:
        """How a latency is measured."""
        return Timing(self.latency_batch, self.threads)
