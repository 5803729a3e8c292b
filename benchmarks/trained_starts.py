"""What masks and one-shot pruning begin with, for the studies of trained models."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from subject import Subject
from torch import nn

from vitprune import Target
from vitprune.latency import Timing
from vitprune.masks import MaskSettings, Pressure, Start
from vitprune.masks.check import maskable
from vitprune.models import example
from vitprune.pipeline.begin import Scored, begin_with, scored
from vitprune.progress import Progress


@dataclass(slots=True, eq=False)
class Starts:
    """What masks and one-shot pruning begin with; rotation and scores are made once for all targets."""

    subject: Subject
    progress: Progress
    _scored: dict[tuple[int, frozenset[str]], Scored] = field(default_factory=dict)
    _begun: dict[tuple[str, str, int], tuple[nn.Module, Start]] = field(default_factory=dict)

    def of(self, target: Target, seed: int, sharing: Any = "residual") -> tuple[nn.Module, Start]:
        """(rotated dense model, `Start` with the refitted model) at the target, of the kinds that masks have."""
        key = (str(target), sharing if sharing == "blocks" else "", seed)
        if key not in self._begun:
            self._begun[key] = self._made(target, seed, sharing)
        return copy.deepcopy(self._begun[key])

    def _made(self, target: Target, seed: int, sharing: Any) -> tuple[nn.Module, Start]:
        subject, settings = self.subject, MaskSettings(Pressure(target=target), sharing=sharing)
        model, graph, batches = subject.origin.model, subject.graph, subject.calibration(seed)
        masked = maskable(model, graph, settings)
        if (seed, masked) not in self._scored:
            found = scored(copy.deepcopy(model), graph, masked, batches, seed=seed, progress=self.progress)
            assert found is not None, subject.label
            self._scored[seed, masked] = found
        image = (example(subject.origin.preprocessing),)
        found = self._scored[seed, masked]
        begun = begin_with(found, graph, settings, batches, image, timing=Timing(), progress=self.progress)
        assert begun.start is not None, f"{target} is out of the reach of scores"
        return begun.model, begun.start
