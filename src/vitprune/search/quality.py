"""How good a model is on fixed images, beside the dense one: image by image, so that small differences show."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.errors import DataError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.normal import Z95
from vitprune.search.errors import Stopped
from vitprune.search.held import held

EARLY = 4  # every so many-th image of a batch is looked at first, where a probe may be stopped


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

    def __call__(self, model: nn.Module, stop: Callable[[Quality], bool] | None = None) -> Quality:
        """The model's answers, in evaluation mode; it keeps the mode that it was in.

        stop: asked once, with the answers for the early images, whether the others are not worth their time: those of
        batches that are held in memory; else it is not asked. Raises Stopped when it says so.
        """
        if stop is None or not isinstance(self.batches, list):
            return self._quality(self._logs(model))
        first = self._logs(model, lambda images: images[::EARLY])
        early = self._early
        quality = self._quality(first, early)
        if stop(quality):
            raise Stopped(quality)
        logged = torch.empty_like(self.expected)
        logged[early] = first
        if not bool(early.all()):
            logged[~early] = self._logs(model, lambda images: images[_late(len(images))])
        return self._quality(logged)

    def early(self, quality: Quality) -> Quality:
        """The part of a quality that `stop` sees; the divergence is still that of all images."""
        hits = quality.hits[self._early.numpy()]
        return Quality(float(hits.mean()), quality.divergence, _bits(hits), len(hits))

    @property
    def _early(self) -> Tensor:
        """(images,) booleans."""
        return torch.cat([torch.arange(len(labels)) % EARLY == 0 for _, labels in self.batches])

    def _logs(self, model: nn.Module, part: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(images, classes) logarithms of probabilities, on the CPU. part: of the images of a batch."""
        model.to(self.device)
        autocast = torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.amp == "bf16")
        found: list[Tensor] = []
        with torch.no_grad(), autocast, evaluating(model):
            for images, _ in self.batches:
                chosen = images if part is None else part(images)
                if len(chosen):
                    found.append(logits(model(chosen.to(self.device))).float().log_softmax(-1).cpu())
        return torch.cat(found)

    def _quality(self, logged: Tensor, part: Tensor | None = None) -> Quality:
        """part: (images,) booleans: which images they are; None: all."""
        labels, dense = (self.labels, self.expected) if part is None else (self.labels[part], self.expected[part])
        hits = (logged.argmax(-1) == labels).numpy()
        divergence = float((dense.exp() * (dense - logged)).sum(-1).double().mean())
        return Quality(float(hits.mean()), divergence, _bits(hits), len(hits))


def _late(images: int) -> Tensor:
    return torch.arange(images) % EARLY != 0


def _bits(hits: np.ndarray) -> str:
    return base64.b64encode(np.packbits(hits).tobytes()).decode()
