"""How images become a model's input: size, channels, normalisation. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from reprlib import repr as shown  # short, whatever the value
from typing import Any

from vitprune.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_VALUES = 2**26  # of one image: more than any such model takes, and no more than memory holds


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model wants of its images, as read from the model's own configuration."""

    size: tuple[int, int]  # (height, width) in pixels
    mean: tuple[float, ...]  # per channel, of values in 0..1
    std: tuple[float, ...]  # per channel, of values in 0..1
    interpolation: str = "bicubic"  # one of INTERPOLATIONS
    channels: int = 3
    crop_pct: float = 1.0  # share of the resized image's side that the central crop keeps, in (0, 1]
    crop_mode: str = "center"  # "center": resize the short side, crop the middle; "squash": resize both sides

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ModelError(
                f"mean and std need one value per channel: {self.channels} channel(s), "
                f"but got {len(self.mean)} and {len(self.std)} values"
            )
        values = self.channels * self.size[0] * self.size[1]
        if values > MAX_VALUES:
            raise ModelError(
                f"an image may have at most {MAX_VALUES} values, but size {self.size} with {self.channels} channel(s) "
                f"has {values}"
            )
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if min(self.size) < 1 or not 0 < self.crop_pct <= 1 or not finite or min(self.std) <= 0:
            raise ModelError(
                f"preprocessing out of range: size {self.size}, crop {self.crop_pct}, mean {self.mean}, std {self.std}"
            )
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ModelError(f"interpolation must be one of {known}, but got {shown(self.interpolation)}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` gives an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The value that `to_json` wrote. Raises ModelError when fields are missing or out of range."""
        try:
            height, width = fields["size"]
            return cls(
                size=(int(height), int(width)),
                mean=tuple(float(v) for v in fields["mean"]),
                std=tuple(float(v) for v in fields["std"]),
                interpolation=str(fields.get("interpolation", "bicubic")),
                channels=int(fields.get("channels", 3)),
                crop_pct=float(fields.get("crop_pct", 1.0)),
                crop_mode=str(fields.get("crop_mode", "center")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"preprocessing needs size, mean and std, but got {shown(dict(fields))}") from error


def fit_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """`values` as they are when there is one per channel; else their mean for every channel."""
    if len(values) == channels:
        return tuple(float(v) for v in values)
    middle = sum(values) / len(values)
    return (float(middle),) * channels
