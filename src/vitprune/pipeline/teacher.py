"""A teacher for distillation that takes the student's images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitprune import models
from vitprune.errors import DataError, ModelError
from vitprune.models import LoadedModel
from vitprune.pipeline.opening import open_model
from vitprune.preprocessing import Preprocessing


def open_teacher(
    spec: str,
    student: LoadedModel,
    classes: Sequence[str],
    *,
    device: str,
    seed: int = 0,
    allow_module: str | None = None,
    scores: bool = True,
) -> nn.Module:
    """The model that `spec` names, in eval mode on `device`, made to take images prepared for `student`.

    classes: names of the data's classes, in the order of the scores. scores: whether it teaches by them; a teacher of
    token features alone may have other classes, or none.

    Raises ModelError, StoreError or DataError when it cannot be had or does not fit.
    """
    opened = open_model(spec, device=device, seed=seed, allow_module=allow_module)
    loaded = opened.loaded
    if scores and loaded.num_classes != len(classes):
        has = f"{loaded.num_classes} classes" if loaded.num_classes else "no classifier"
        raise DataError(
            f"the teacher must score the data's {len(classes)} classes, but {spec} has {has}; fine-tune it on the data "
            "first (finetune --new-head), or let it teach by token features alone (--distill-weight 0, "
            "--feature-weight 1)"
        )
    if scores and opened.classes and tuple(opened.classes) != tuple(classes):
        first = next(i for i, (a, b) in enumerate(zip(opened.classes, classes, strict=True)) if a != b)
        raise DataError(
            f"the teacher must have the data's classes in their order, but class {first} of {spec} is "
            f"{opened.classes[first]!r} and that of the data {classes[first]!r}; train it on the same data"
        )
    given, wanted = student.preprocessing, loaded.preprocessing
    if (given.size, given.channels, given.mean, given.std) == (wanted.size, wanted.channels, wanted.mean, wanted.std):
        return loaded.model
    if given.channels != wanted.channels and given.channels != 1:
        raise ModelError(
            f"the teacher {spec} takes {wanted.channels} channel(s), and the student's images have {given.channels}; "
            "choose a teacher of as many channels"
        )
    return Adapted(loaded.model, given, wanted).to(device).eval()


class Adapted(nn.Module):
    """A model behind a change from one preprocessing to another: values, channels, size."""

    factor: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, given: Preprocessing, wanted: Preprocessing) -> None:
        super().__init__()
        self.model, self.size, self.channels = model, wanted.size, wanted.channels
        std, mean = torch.tensor(wanted.std), torch.tensor(wanted.mean)
        self.register_buffer("factor", (torch.tensor(given.std) / std).view(1, -1, 1, 1))
        self.register_buffer("shift", ((torch.tensor(given.mean) - mean) / std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), as prepared for the given preprocessing, to the model's (B, classes)."""
        x = x * self.factor + self.shift
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return models.logits(self.model(x))
