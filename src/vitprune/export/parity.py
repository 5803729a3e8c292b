"""An exported file's answers beside the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vitprune.export.errors import ExportError
from vitprune.export.types import Runner
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.progress import Progress, Silent

TIE = 1e-4  # of the largest score: two classes as near as this are one answer


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the answers of an exported file are from the model's, image by image."""

    images: int
    largest: float  # largest |difference| of a score, as a share of the model's largest |score|
    agreement: float  # share of images with the model's class; a class that is tied with it counts
    top1_model: float | None  # share of right answers of the model; None without labels
    top1: float | None  # of the exported file

    @property
    def drop(self) -> float | None:
        """Points of top-1 that the exported file loses."""
        return None if self.top1 is None or self.top1_model is None else 100 * (self.top1_model - self.top1)

    def to_json(self) -> dict[str, Any]:
        """The fields and `drop` as JSON values."""
        return asdict(self) | {"drop": self.drop}


def compare(
    model: nn.Module,
    runner: Runner,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    *,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Parity:
    """Parity of `runner` with the model on (images, labels) batches, the first image alone beforehand.

    batch: the one number of images that the runner takes; None: any. The model is on the CPU.

    Raises ExportError when the runner gives scores of another shape, values that are not finite, or fails.
    """
    shown = progress or Silent()
    wanted: list[npt.NDArray[Any]] = []
    got: list[npt.NDArray[Any]] = []
    truth: list[npt.NDArray[Any]] = []
    shown.start("comparing", len(batches) if isinstance(batches, Sized) else 0)
    with torch.no_grad(), evaluating(model):
        for images, labels in batches:
            if not wanted:
                one = images[:1]
                wanted.append(logits(model(one)).numpy())
                got.append(in_chunks(runner, one.numpy(), batch))
                if labels is not None:
                    truth.append(labels[:1].numpy())
                images, labels = images[1:], None if labels is None else labels[1:]
            if len(images):
                wanted.append(logits(model(images)).numpy())
                got.append(in_chunks(runner, images.numpy(), batch))
                if labels is not None:
                    truth.append(labels.numpy())
            shown.advance()
    shown.done()
    if got[0].shape != wanted[0].shape:
        shapes = f"{list(got[0].shape)} for one image, the model {list(wanted[0].shape)}"
        raise ExportError(f"the exported file gives scores of shape {shapes}; nothing was kept")
    return parity_of(np.concatenate(wanted), np.concatenate(got), np.concatenate(truth) if truth else None)


def parity_of(model_NK: npt.NDArray[Any], file_NK: npt.NDArray[Any], labels_N: npt.NDArray[Any] | None) -> Parity:
    """Parity of two tables of scores, N images by K classes. Raises ExportError for values that are not finite."""
    if not np.isfinite(file_NK).all():
        raise ExportError(f"the exported file gives scores that are not finite, for {len(file_NK)} images")
    scale = max(float(np.abs(model_NK).max()), 1e-12)
    rows = np.arange(len(model_NK))
    mine, theirs = model_NK.argmax(1), file_NK.argmax(1)
    behind = model_NK[rows, mine] - model_NK[rows, theirs]
    largest = float(np.abs(model_NK - file_NK).max()) / scale
    right = [None, None] if labels_N is None else [float((found == labels_N).mean()) for found in (mine, theirs)]
    return Parity(len(rows), largest, float((behind <= TIE * scale).mean()), right[0], right[1])


def in_chunks(runner: Runner, images: npt.NDArray[Any], batch: int | None) -> npt.NDArray[Any]:
    """The runner's scores (N, K) of N images, `batch` at a time, the last chunk filled up with its last image."""
    images = np.ascontiguousarray(images, dtype=np.float32)
    if batch is None:
        return np.asarray(runner(images))
    parts = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        filled = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
        parts.append(np.array(runner(filled))[: len(chunk)])
    return np.concatenate(parts)


def check_parity(parity: Parity, tolerance: float, max_drop: float | None) -> None:
    """Pass when the file answers as the model does.

    float files (`max_drop` None): no score is further off than `tolerance`, and every class is the same up to ties.
    Quantized ones: at most `max_drop` points of top-1 are lost.

    Raises ExportError with what was found.
    """
    if max_drop is None:
        if not parity.largest <= tolerance or parity.agreement < 1:
            raise ExportError(
                f"the exported file does not answer as the model does: scores differ by up to {parity.largest:.2g} of "
                f"the largest (at most {tolerance:.0e} is allowed), {100 * parity.agreement:.2f} % of {parity.images} "
                "images have the same class; nothing was kept"
            )
    elif parity.drop is not None and parity.drop > max_drop:
        assert parity.top1 is not None and parity.top1_model is not None
        raise ExportError(
            f"the quantized file loses {parity.drop:.2f} points of top-1 on {parity.images} validation images "
            f"({100 * parity.top1_model:.2f} to {100 * parity.top1:.2f} %), more than --max-drop {max_drop:g}; nothing "
            "was kept; more calibration images (--calibration), int8-dynamic or another --max-drop may do"
        )
