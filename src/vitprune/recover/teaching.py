"""The teacher's part of the loss: soft labels, and token features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from vitprune.models.loaded import logits
from vitprune.progress import Progress
from vitprune.recover.features import TokenFeatures
from vitprune.recover.loss import distillation_loss
from vitprune.recover.settings import TrainError, TrainSettings


class Teaching:
    """What a student is told by a teacher, which may be None; nothing is left in either model."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        settings: TrainSettings,
        images: Callable[[], Tensor],
        training: Iterable[Tensor],
        total: Callable[[Tensor], Tensor],
        progress: Progress,
    ) -> None:
        """images: gives one or two, on the models' device; it is asked only where they are needed.

        training, total: what maps between features are fitted with, see `TokenFeatures.fit_maps_`.

        Raises TrainError when the teacher does not fit, or the settings want one and there is none.
        """
        self.settings = settings
        self.features: TokenFeatures | None = None
        settings.check_teacher(teacher is not None)
        self.teacher = teacher if settings.distill_weight or settings.feature_weight else None
        if teacher is None:
            return
        some = images()
        if settings.distill_weight and (own := classes(student, some)) != (theirs := classes(teacher, some)):
            raise TrainError(
                f"the teacher scores {theirs} classes and the student {own}, so the one cannot teach the other by "
                "scores; train the teacher on the student's classes (finetune --new-head), or set distill_weight to 0 "
                "and feature_weight above 0 to teach by token features"
            )
        if settings.feature_weight:
            self.features = TokenFeatures(student.eval(), teacher, some, settings)
            self.features.fit_maps_(training, total)
            progress.line("token features: " + ", ".join(f"{a} like {b}" for a, b in self.features.layers))

    def parameters(self) -> list[nn.Parameter]:
        """Maps between features of different widths, trained beside the student."""
        return [] if self.features is None else list(self.features.parameters())

    def __call__(self, loss: Tensor, images: Tensor, scores: Tensor) -> Tensor:
        """The loss with the teacher's part, from the student's scores (B, classes) of the images."""
        if self.teacher is None:
            return loss
        share = self.settings.distill_weight
        with torch.no_grad():
            wanted = logits(self.teacher(images))
        if share:
            soft = distillation_loss(scores, wanted, self.settings.distill_temperature)
            loss = (1 - share) * loss + share * soft
        if self.features is not None:
            loss = loss + self.settings.feature_weight * self.features()
        return loss


@torch.no_grad()
def classes(model: nn.Module, images: Tensor) -> int:
    """How many classes a model scores."""
    return int(logits(model.eval()(images)).shape[-1])
