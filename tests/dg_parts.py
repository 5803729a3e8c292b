"""What the tests of studies share."""

from __future__ import annotations

from typing import Any

from vitprune.pipeline.dg_settings import StudySettings
from vitprune.recover import TrainSettings

SHORT = TrainSettings(epochs=1, batch_size=6, warmup_epochs=0.0)


def settings(**more: Any) -> StudySettings:
    """A study that takes seconds."""
    given: dict[str, Any] = {"ratios": (0.3,), "scores": ("magnitude-l2",), "seeds": (0,), "dense": SHORT}
    given |= {"tuning": SHORT, "from_scratch": True, "calibration": 6, "control": False}
    return StudySettings(**{**given, **more})
