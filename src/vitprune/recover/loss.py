"""The training loss: cross-entropy on hard or mixed labels, and a teacher's soft labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitprune.recover.settings import TrainSettings

Mixer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def make_mixer(settings: TrainSettings, classes: int) -> Mixer | None:
    """Images and labels -> mixed images and (B, classes) soft labels, or None when mixing is off.

    Source: mixup arXiv 1710.09412, CutMix arXiv 1905.04899, as torchvision does them (one weight per batch).
    """
    from torchvision.transforms import v2

    parts: list[Mixer] = []
    if settings.mixup:
        parts.append(v2.MixUp(alpha=settings.mixup, num_classes=classes))
    if settings.cutmix:
        parts.append(v2.CutMix(alpha=settings.cutmix, num_classes=classes))
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    return lambda x, y: parts[int(torch.randint(2, ()))](x, y)


def task_loss(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of (B, K) logits with (B,) class indices or (B, K) class shares, as a float32 scalar."""
    return torch.nn.functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x KL(teacher || student) of softmax(logits / T), mean over the batch, as a float32 scalar.

    Source: arXiv 1503.02531.
    """
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    wanted = torch.log_softmax(teacher.float() / temperature, dim=-1)
    kl = torch.nn.functional.kl_div(student, wanted, reduction="batchmean", log_target=True)
    return kl * temperature**2
