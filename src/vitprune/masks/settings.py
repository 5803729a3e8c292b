"""How masks are trained, as one comparable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitprune.masks.cost import Pressure
from vitprune.masks.errors import MaskError
from vitprune.masks.relax import RELAXATIONS
from vitprune.masks.vectors import SHARING, Sharing
from vitprune.recover import TrainSettings

DENSE, STARTED = 1e-2, 3e-3  # learning rates of masks that begin with the dense model, and with one that scores chose


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """Settings of one run; the defaults are those of the source where it has any.

    Source: L. Tredese (Politecnico di Torino, 2023): weights 1e-4, masks 1e-2 without weight decay, then fine-tuning
    at 1e-4 with a cosine.
    """

    pressure: Pressure
    search: TrainSettings = field(default_factory=lambda: TrainSettings(lr=1e-4))
    warmup: TrainSettings | None = None  # training before the masks, where the model is not trained yet
    finetune: TrainSettings | None = field(default_factory=lambda: TrainSettings(lr=1e-4))
    kinds: tuple[str, ...] | None = None  # None: mlp, qk, v, heads and residual, as far as the model has them
    sharing: Sharing = "residual"
    freeze: tuple[str, ...] = ()  # kinds that keep their size
    protect: tuple[str, ...] = ()  # patterns of group names that keep theirs
    mask_lr: float | None = None  # None: see `rate`
    relaxation: str = "straight-through"
    round_to: int = 1
    minimum: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, table in (("sharing", self.sharing, SHARING), ("relaxation", self.relaxation, RELAXATIONS)):
            if value not in table:
                raise MaskError(f"{name} must be one of {', '.join(table)}, but got {value!r}")
        if (self.relaxation == "scale") != bool(self.pressure.l1):
            raise MaskError("an l1 penalty and the relaxation scale (VTP) go together; `vtp` gives such settings")
        if self.relaxation == "top-k" and self.pressure.target is None:
            raise MaskError("the relaxation top-k needs a target, as its counts follow the budget")
        if self.mask_lr is not None and not 0 < self.mask_lr < float("inf"):
            raise MaskError(f"mask_lr must be positive, but got {self.mask_lr}")

    def rate(self, started: bool) -> float:
        """The masks' learning rate; started: with a pruned model, whose order of units larger steps would scramble."""
        return self.mask_lr or (STARTED if started else DENSE)

    def searching(self) -> TrainSettings:
        """The search's training settings: averaged or best weights would belong to other masks than the last ones."""
        return replace(self.search, ema=0.0, keep="last")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)
