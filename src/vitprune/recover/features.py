"""Distillation by token features: what the student's tokens should look like, beside its scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitprune.recover.settings import TrainError, TrainSettings
from vitprune.recover.tokens import Taps, aligned, last_tokens, matching, outputs, to_tokens


def feature_loss(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """Mean square difference of tokens that have mean 0 and variance 1 each, as a float32 scalar in 0..4.

    Source: arXiv 2205.14141 (whitened teacher features), with the student's tokens normalised too and squares for its
    smooth L1.
    """
    width = teacher_BND.shape[-1:]
    student = nn.functional.layer_norm(student_BND.float(), width)
    return nn.functional.mse_loss(student, nn.functional.layer_norm(teacher_BND.float(), width))


class TokenFeatures(nn.Module):
    """The loss between pairs of layers of student and teacher, with a learned linear map where widths differ.

    Its parameters are those maps; they serve training alone and are no part of the student.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, images: Tensor, settings: TrainSettings) -> None:
        """`images`: (B, C, H, W), to find the layers with; see `feature_layers` of the settings.

        Raises TrainError when layers cannot be found or do not fit.
        """
        super().__init__()
        shapes = outputs(student, images), outputs(teacher, images)
        names = _pairs(student, teacher, shapes, settings.feature_layers, len(images))
        self._square = images.shape[-1] == images.shape[-2]
        self._taps = Taps(student, names[0]), Taps(teacher, names[1])
        self.maps = nn.ModuleList()
        with self.open(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            student(images)
            teacher(images)
            for own, wanted in zip(*(taps.take() for taps in self._taps), strict=True):
                s_BND, t_BND = aligned(to_tokens(own), to_tokens(wanted), self._square)
                widths = s_BND.shape[-1], t_BND.shape[-1]
                self.maps.append(nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths))
        self.to(images.device)

    @property
    def layers(self) -> list[tuple[str, str]]:
        """Names of the modules that are compared: of the student, of the teacher."""
        return list(zip(self._taps[0].names, self._taps[1].names, strict=True))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it, forward passes of both models leave their features."""
        with self._taps[0].open(), self._taps[1].open():
            yield

    def forward(self) -> Tensor:
        """The loss of the last forward passes, the mean over the pairs, as a float32 scalar."""
        total = []
        for own, wanted, line in zip(self._taps[0].take(), self._taps[1].take(), self.maps, strict=True):
            student, teacher = aligned(to_tokens(own), to_tokens(wanted), self._square)
            total.append(feature_loss(line(student), teacher.detach()))
        return torch.stack(total).mean()


def _pairs(
    student: nn.Module,
    teacher: nn.Module,
    shapes: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]],
    layers: str,
    batch: int,
) -> tuple[list[str], list[str]]:
    """Modules of the student and of the teacher, pair by pair."""
    if not layers.strip():
        return [last_tokens(student, shapes[0], batch)], [last_tokens(teacher, shapes[1], batch)]
    mine: list[str] = []
    theirs: list[str] = []
    for text in layers.split(","):
        own, equals, other = (part.strip() for part in text.partition("="))
        a = matching(shapes[0], own, batch, "student")
        b = matching(shapes[1], other if equals else own, batch, "teacher")
        if len(a) != len(b):
            raise TrainError(
                f"feature_layers: {text.strip()!r} matches {len(a)} modules of the student and {len(b)} of the "
                "teacher; pair them as STUDENT=TEACHER"
            )
        mine += a
        theirs += b
    return mine, theirs
