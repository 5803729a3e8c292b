"""What is asked for: a share of the dense model's cost, or an absolute cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vitprune.errors import TargetError

Metric = Literal["macs", "params"]
METRICS: tuple[Metric, ...] = get_args(Metric)
SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_FORM = "write METRIC=RATIO or METRIC=ABSOLUTE, such as macs=0.5, params=0.4, macs=4.6G or params=12M"


@dataclass(frozen=True, slots=True)
class Target:
    """A budget that the pruned model must not exceed."""

    metric: Metric
    value: float  # a ratio in (0, 1], or MACs per image / parameters when absolute
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise TargetError(f"target metric must be one of {', '.join(METRICS)}, but got {self.metric!r}; {_FORM}")
        if not math.isfinite(self.value) or self.value <= 0:
            raise TargetError(f"target must be above 0, but got {self.metric}={self.value:g}; {_FORM}")
        if not self.absolute and self.value > 1:
            raise TargetError(
                f"target ratio must be in (0, 1], the share of the dense model that stays, but got "
                f"{self.metric}={self.value:g}; an absolute value needs a suffix k, M, G or T"
            )

    @staticmethod
    def parse(text: str) -> Target:
        """The target in `text`: "macs=0.5", "params=0.4", "macs=4.6G", "params=12M".

        Raises TargetError when it is malformed or out of range.
        """
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*([-+0-9.eE]+)\s*([A-Za-z]?)\s*", text)
        try:
            if match is None:
                raise ValueError(text)
            metric, number, suffix = match.groups()
            value = float(number) * (SUFFIXES[suffix] if suffix else 1.0)
        except (ValueError, KeyError) as error:
            raise TargetError(f"target {text!r} is not understood; {_FORM}") from error
        return Target(cast(Metric, metric.lower()), value, bool(suffix))

    def budget(self, dense: int) -> float:
        """The most that the pruned model may cost, when the dense one costs `dense`.

        Raises TargetError for an absolute target above the dense model's cost.
        """
        if not self.absolute:
            return self.value * dense
        if self.value > dense:
            raise TargetError(f"target {self} is above the dense model's {self.metric} of {human(dense)}; ask for less")
        return self.value

    def __str__(self) -> str:
        return f"{self.metric}={human(self.value) if self.absolute else format(self.value, 'g')}"


def human(value: float) -> str:
    """`value` with three or four digits and a suffix: 4608338304 -> "4.608G"."""
    for suffix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:g}"
