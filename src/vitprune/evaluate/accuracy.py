"""Top-1 and top-5 of a classifier, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.errors import DataError, ModelError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.normal import Z95
from vitprune.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images whose class is the first, or among the first five, of the model's scores."""

    top1: float  # 0..1
    top5: float  # 0..1; with fewer than five classes it is 1
    n: int  # images
    ci95: tuple[float, float]  # Wilson interval of top1
    right: bytes = field(default=b"", repr=False)  # of top1, a bit per image as they came; see `numpy.packbits`
    labels: bytes = field(default=b"", repr=False)  # classes of the images as they came, little-endian uint32
    predicted: bytes = field(default=b"", repr=False)  # the first class of the scores, likewise

    def to_json(self) -> dict[str, Any]:
        """The fields of all images together, as JSON values."""
        return {"top1": self.top1, "top5": self.top5, "n": self.n, "ci95": list(self.ci95)}


def accuracy(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: str = "cpu",
    *,
    amp: str = "no",
    progress: Progress | None = None,
) -> Accuracy:
    """Top-1 and top-5 of `model` over (images, labels) batches, in evaluation mode.

    `amp`: "no" (float32) or "bf16". The model is moved to `device` and keeps the mode that it was in.

    Raises:
        DataError: no images, or a label that the model's head does not have.
    """
    shown = progress or Silent()
    model.to(device)
    wanted: list[Tensor] = []
    best: list[Tensor] = []
    right1, right5, n = 0, 0, 0
    shown.start("evaluating", len(loader) if isinstance(loader, Sized) else 0)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp == "bf16")
    try:
        with torch.no_grad(), autocast, evaluating(model):
            for images, labels in loader:
                first, five = _first(logits(model(images.to(device))), labels.to(device))
                wanted.append(labels.cpu())
                best.append(first)
                right1, right5, n = right1 + int((first == wanted[-1]).sum()), right5 + five, n + len(labels)
                shown.advance(1, top1=right1 / n)
    finally:
        shown.done()
    if n == 0:
        raise DataError("accuracy needs at least one image, but the data has none")
    truth, found = torch.cat(wanted).numpy(), torch.cat(best).numpy()
    bits = np.packbits(truth == found)
    classes = (array.astype("<u4").tobytes() for array in (truth, found))
    return Accuracy(right1 / n, right5 / n, n, wilson(right1, n), bits.tobytes(), *classes)


def _first(scores: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """The first class of each image, (B,) on the CPU, and for how many theirs is among the first five."""
    if scores.ndim != 2:
        raise ModelError(f"accuracy needs scores of shape (batch, classes), but the model gives {tuple(scores.shape)}")
    if int(labels.max()) >= scores.shape[1]:
        raise DataError(f"the data has a class {int(labels.max())}, but the model's head has {scores.shape[1]} classes")
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return best[:, 0].cpu(), int((best == labels[:, None]).any(1).sum())


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The 95 % interval of a share of `right` out of `n`.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
