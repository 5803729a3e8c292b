"""How a model is trained, as one comparable value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vitprune.errors import VitpruneError

OPTIMIZERS = ("adamw", "muon")
AMP = ("auto", "no", "bf16", "fp16")


class TrainError(VitpruneError):
    """Training that cannot start or go on."""

    exit_code = 8


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of one training run; two equal values on one machine give the same weights."""

    epochs: int = 10  # passes over the training images, at least 1
    lr: float = 1e-3  # peak learning rate; Muon wants about ten times as much as AdamW
    optimizer: str = "adamw"  # or "muon": quicker from scratch; matrices by Muon, the rest by AdamW
    weight_decay: float = 0.05  # not on biases and norms
    warmup_epochs: float = 1.0  # linear warm-up, may be a fraction
    min_lr: float = 0.01  # final learning rate as a share of the peak
    label_smoothing: float = 0.1
    mixup: float = 0.0  # alpha of mixup, 0 = off
    cutmix: float = 0.0  # alpha of CutMix, 0 = off; with both on, each batch gets one of them
    ema: float = 0.0  # decay of the averaged weights per step (0.999), 0 = off
    clip: float = 1.0  # largest gradient norm, 0 = off
    layer_decay: float = 1.0  # learning rate factor per layer away from the head
    amp: str = "auto"  # autocast: "bf16", "fp16", "no", or "auto" (bf16 where the device has fast bf16 matmuls)
    batch_size: int = 128  # images per forward pass and process
    accumulate: int = 1  # forward and backward passes per step, whose gradients are averaged
    grad_checkpointing: bool = (
        False  # forget activations and compute them again: less memory, a fifth to a third more time
    )
    seed: int = 0
    keep: str = "best"  # weights left in the model: the "best" by validation top-1 (the start included), or the "last"
    patience: int = 0  # epochs without a better validation top-1, or a lower cost, that end the training; 0 = never
    distill_weight: float = 0.9  # share of the teacher's term when there is a teacher, 0..1
    distill_temperature: float = 2.0
    feature_weight: float = 0.0  # weight of the difference between the token features of teacher and student, 0 = off
    feature_layers: str = ""  # modules whose outputs are compared: "blocks.*", "norm=encoder.norm,..."; "": the last
    flip: bool = True  # the augmentation of data.AugmentSettings, kept here so that one value says everything
    crop_padding: int = 0
    erasing: float = 0.0
    erasing_noise: bool = False
    resized_crop: float = 0.0
    color_jitter: float = 0.0
    randaugment: float = 0.0

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("lr", self.lr > 0, "positive"),
            ("warmup_epochs", self.warmup_epochs >= 0, "not negative"),
            ("min_lr", 0 <= self.min_lr <= 1, "in 0..1"),
            ("weight_decay", self.weight_decay >= 0, "not negative"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in 0..1, below 1"),
            ("mixup", self.mixup >= 0, "not negative"),
            ("cutmix", self.cutmix >= 0, "not negative"),
            ("ema", 0 <= self.ema < 1, "in 0..1, below 1"),
            ("clip", self.clip >= 0, "not negative"),
            ("layer_decay", 0 < self.layer_decay <= 1, "in 0..1, above 0"),
            ("optimizer", self.optimizer in OPTIMIZERS, "one of " + ", ".join(OPTIMIZERS)),
            ("amp", self.amp in AMP, "one of " + ", ".join(AMP)),
            ("patience", self.patience >= 0, "not negative"),
            ("keep", self.keep in ("best", "last"), "best or last"),
            ("distill_weight", 0 <= self.distill_weight <= 1, "in 0..1"),
            ("feature_weight", self.feature_weight >= 0, "not negative"),
            ("distill_temperature", self.distill_temperature > 0, "positive"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise TrainError(f"{name} must be {rule}, but got {getattr(self, name)!r}")

    def check_teacher(self, there: bool) -> None:
        """Raises TrainError when token features are to be learned and there is no teacher."""
        if self.feature_weight and not there:
            raise TrainError(f"feature_weight {self.feature_weight:g} needs a teacher; name one, or set it to 0")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` gives an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainSettings:
        """The value that `to_json` wrote. Raises TrainError naming fields that do not exist."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise TrainError(f"unknown training settings: {', '.join(unknown)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave."""

    epoch: int  # from 0
    loss: float  # mean training loss
    lr: float  # at the epoch's end
    val_top1: float  # share in 0..1, of the averaged weights where averaging is on
    seconds: float  # wall clock, validation included
    train_top1: float = 0.0  # share in 0..1 on the augmented training images; of the heavier class where they are mixed
    cost: float | None = None  # at the epoch's end, as a share of the beginning's; of a `CostHook` alone
    settled: bool = True  # whether that cost is low enough


@dataclass(frozen=True, slots=True)
class History:
    """What a training run gave."""

    epochs: tuple[EpochRecord, ...]
    best_epoch: int  # -1: the weights before training
    best_val_top1: float
    kept: str  # "best" or "last": which weights the model holds now
    start_val_top1: float | None = None  # before training, where the best weights are kept or a `CostHook` works

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"epochs": [asdict(e) for e in self.epochs]}

    @classmethod
    def of(cls, epochs: tuple[EpochRecord, ...], kept: str, start: float | None = None) -> History:
        """The history of these epochs; the first of equally good ones is the best.

        Where the best weights are kept, the start may be better than all of them.
        """
        best = max(epochs, key=lambda e: (e.val_top1, -e.epoch))
        if start is not None and kept == "best" and start > best.val_top1:
            return cls(epochs, -1, start, kept, start)
        return cls(epochs, best.epoch, best.val_top1, kept, start)
