"""How good a model is on fixed images, beside the dense one: image by image, so that small differences show."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.errors import DataError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.search.held import held

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Quality:
    """A model's answers on the validation images."""

    top1: float  # 0..1
    divergence: float  # mean over images of the divergence (nats) of its class probabilities from the dense model's
    right: str  # which images it names rightly: bits, base64
    images: int

    @property
    def hits(self) -> np.ndarray:
        """(images,) booleans."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.right), dtype=np.uint8))
        return bits[: self.images].astype(bool)


@dataclass(frozen=True, slots=True)
class Drop:
    """How much of the dense model's accuracy is lost, on the same images."""

    points: float  # of 100; below 0: gained
    error: float  # standard error of points

    @property
    def ci95(self) -> tuple[float, float]:
        """Interval of points, by the normal distribution."""
        return self.points - Z95 * self.error, self.points + Z95 * self.error


def drop(dense: Quality, other: Quality) -> Drop:
    """The paired difference: images that both name rightly, or both wrongly, add nothing to its error.

    The error is at least that of one image, as no sample shows that two models never differ.
    """
    before, after = dense.hits, other.hits
    lost, gained, n = int((before & ~after).sum()), int((after & ~before).sum()), len(before)
    mean = (lost - gained) / n
    variance = max((lost + gained) / n - mean**2, 1 / n)
    return Drop(100 * mean, 100 * math.sqrt(variance / n))


def better(one: Quality, other: Quality) -> bool:
    """Whether `one` is to be preferred: by top-1 where that differs by more than its error, else by divergence."""
    between = drop(one, other)
    if abs(between.points) > between.error:
        return between.points > 0
    return one.divergence < other.divergence


class Judge:
    """Fixed images, and what the dense model says of them."""

    def __init__(self, dense: nn.Module, batches: Iterable[Any], device: str = "cpu", *, amp: str = "no") -> None:
        """batches: (images, labels), run once for every model. amp: "no" or "bf16". Raises DataError without images."""
        self.device, self.amp, self.batches = device, amp, held(batches)
        labels = [labels.cpu() for _, labels in self.batches]
        if not labels:
            raise DataError("a search needs validation images, but the data has none")
        self.labels = torch.cat(labels)
        self.expected = self._logs(dense)
        self.dense = self._quality(self.expected)

    def __call__(self, model: nn.Module) -> Quality:
        """The model's answers, in evaluation mode; it keeps the mode that it was in."""
        return self._quality(self._logs(model))

    def _logs(self, model: nn.Module) -> Tensor:
        """(images, classes) logarithms of probabilities, on the CPU."""
        model.to(self.device)
        autocast = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.amp == "bf16")
        with torch.no_grad(), autocast, evaluating(model):
            found = [logits(model(images.to(self.device))).float() for images, _ in self.batches]
        return torch.cat([scores.log_softmax(-1).cpu() for scores in found])

    def _quality(self, logged: Tensor) -> Quality:
        hits = (logged.argmax(-1) == self.labels).numpy()
        dense = self.expected
        divergence = float((dense.exp() * (dense - logged)).sum(-1).double().mean())
        right = base64.b64encode(np.packbits(hits).tobytes()).decode()
        return Quality(float(hits.mean()), divergence, right, len(hits))
