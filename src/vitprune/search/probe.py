"""One model that a search tried, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vitprune.search.quality import Drop, Quality

COSTS = ("macs", "params", "latency")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was tried, what it costs, and how good it is on the validation images."""

    number: int  # in the order in which they were made, from 1
    origin: str  # who asked for it: "coarse", "refine", "uniform", "bayes", ...
    purpose: str  # what it was made for first, and counts for in the limits of: goal and method
    shares: Mapping[str, float]  # of the axes; {} where the plan is none of theirs
    sizes: Mapping[str, int]  # of the groups that lose units
    costs: Mapping[str, float]  # metric -> share of the dense model's cost; latency as a table predicts it
    quality: Quality
    lost: Drop  # against the dense model
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)  # further, JSON values

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Probe:
        """The probe that `to_json` wrote. Raises KeyError or TypeError for anything else."""
        given = dict(fields)
        return Probe(**given | {"quality": Quality(**given["quality"]), "lost": Drop(**given["lost"])})
