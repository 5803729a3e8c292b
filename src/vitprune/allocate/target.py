"""What is asked for: a share of the dense model's cost, or an absolute cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from vitprune.errors import TargetError

Metric = Literal["macs", "params", "latency", "units"]
COUNTED: Metric = "units"  # a share of the units themselves, which is no cost
METRICS: tuple[Metric, ...] = tuple(m for m in get_args(Metric) if m != COUNTED)  # costs
SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
MILLISECONDS = {"ms": 1.0, "s": 1e3}
_FORM = (
    "write METRIC=RATIO or METRIC=ABSOLUTE, such as macs=0.5, params=0.4, latency=0.5x, macs=4.6G, params=12M or "
    "latency=12ms"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A budget: MACs, parameters and units never exceed it, a measured latency meets it."""

    metric: Metric
    value: float  # a ratio in (0, 1]; when absolute MACs per image, parameters, or ms of the whole batch
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise TargetError(
                f"target metric must be one of {', '.join(get_args(Metric))}, but got {self.metric!r}; {_FORM}"
            )
        if not math.isfinite(self.value) or self.value <= 0:
            raise TargetError(f"target must be above 0, but got {self.metric}={self.value:g}; {_FORM}")
        if self.absolute and self.metric == COUNTED:
            raise TargetError(f"units are asked for as a share, such as units=0.5, but got units={self.value:g}")
        if not self.absolute and self.value > 1:
            suffix = "ms or s" if self.metric == "latency" else "k, M, G or T"
            raise TargetError(
                f"target ratio must be in (0, 1], the share of the dense model that stays, but got "
                f"{self.metric}={self.value:g}; an absolute value needs a suffix {suffix}"
            )

    @staticmethod
    def parse(text: str) -> Target:
        """The target in `text`: "macs=0.5", "params=0.4x", "latency=0.5x", "macs=4.6G", "params=12M", "latency=12ms".

        An x after a share changes nothing. Raises TargetError when it is malformed or out of range.
        """
        match = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*([-+.0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
        try:
            if match is None:
                raise ValueError(text)
            metric, number, suffix = match[1].lower(), float(match[2]), match[3]
            if suffix in ("", "x"):
                return Target(cast(Metric, metric), number)
            units = MILLISECONDS if metric == "latency" else SUFFIXES
            if suffix not in units and suffix in (SUFFIXES | MILLISECONDS):
                raise TargetError(f"target {text!r}: {metric} is not given in {suffix!r}; {_FORM}")
            return Target(cast(Metric, metric), number * units[suffix], True)
        except TargetError:
            raise
        except (ValueError, KeyError) as error:
            raise TargetError(f"target {text!r} is not understood; {_FORM}") from error

    def budget(self, dense: float) -> float:
        """The most that the pruned model may cost, when the dense one costs `dense`.

        Raises TargetError for an absolute target above the dense model's cost.
        """
        if not self.absolute:
            return self.value * dense
        if self.value > dense:
            has = f"{dense:.4g}ms" if self.metric == "latency" else human(dense)
            raise TargetError(f"target {self} is above the dense model's {self.metric} of {has}; ask for less")
        return self.value

    def __str__(self) -> str:
        if self.metric == "latency":
            return f"latency={self.value:g}{'ms' if self.absolute else 'x'}"
        return f"{self.metric}={human(self.value) if self.absolute else format(self.value, 'g')}"


def human(value: float) -> str:
    """`value` with three or four digits and a suffix: 4608338304 -> "4.608G"."""
    for suffix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:g}"
