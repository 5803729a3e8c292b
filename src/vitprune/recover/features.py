"""Distillation by token features: what the student's tokens should look like, beside its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitprune.calibrate import Moments
from vitprune.recover.settings import TrainError, TrainSettings
from vitprune.recover.tokens import Taps, aligned, last_tokens, matching, outputs, to_tokens

FAR, NEARER = 0.1, 2.0  # loss, and ratio of losses: see `fit_maps_`


def feature_loss(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """Mean square difference of tokens that have mean 0 and variance 1 each, as a float32 scalar in 0..4.

    Source: arXiv 2205.14141 (whitened teacher features), with the student's tokens normalised too and squares for its
    smooth L1.
    """
    return nn.functional.mse_loss(_normal(student_BND), _normal(teacher_BND))


def _normal(tokens_BND: Tensor) -> Tensor:
    return nn.functional.layer_norm(tokens_BND.float(), tokens_BND.shape[-1:])


class TokenFeatures(nn.Module):
    """The loss between pairs of layers of student and teacher, with a learned linear map where widths or bases differ.

    Its parameters are those maps; they serve training alone and are no part of the student. Call `fit_maps_` before
    training: with maps that know nothing the loss first tears down what a pruned student still has of its teacher.
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
            for s_BND, t_BND in self._pairs_of(images):
                widths = s_BND.shape[-1], t_BND.shape[-1]
                self.maps.append(nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths))
        self.to(images.device)

    def _pairs_of(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens (B, N, D) of student and teacher, layer by layer; for while both leave them."""
        for own, wanted in zip(*(taps.run(images) for taps in self._taps), strict=True):
            yield aligned(to_tokens(own), to_tokens(wanted), self._square)

    @torch.no_grad()
    def fit_maps_(self, batches: Iterable[Tensor], total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        """Sets the maps to what gives the teacher's normalised tokens from the student's, by least squares.

        Equally wide features are compared as they are, unless they are far apart (`FAR`) and a map brings them
        `NEARER` times nearer: those of a rotated model, or of one that was trained apart, stand in another basis.

        batches: (B, C, H, W) images on the models' device, some hundred in all. total: gives the sum of a tensor over
        all processes.
        """
        fits: list[_Fit] = []
        with self.open():
            for images in batches:
                pairs = [(s.float().flatten(0, 1), _normal(t).flatten(0, 1)) for s, t in self._pairs_of(images)]
                fits = fits or [_Fit(s_ND.shape[-1], t_ND) for s_ND, t_ND in pairs]
                for fit, (s_ND, t_ND) in zip(fits, pairs, strict=True):
                    fit.add(s_ND, t_ND)
        for i, fit in enumerate(fits):
            fit.gather_(total)
            line, left = fit.solve()
            if isinstance(self.maps[i], nn.Linear) or fit.apart() > max(FAR, NEARER * left):
                self.maps[i] = line

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


class _Fit:
    """The regression of a layer's normalised teacher tokens on the student's, and how far these are as they are."""

    def __init__(self, width: int, t_ND: Tensor) -> None:
        self.moments = Moments(width, t_ND.shape[-1], t_ND.device)
        self.differences = torch.zeros(1, dtype=torch.float64, device=t_ND.device)

    def add(self, s_ND: Tensor, t_ND: Tensor) -> None:
        self.moments.add(s_ND, t_ND)
        if s_ND.shape == t_ND.shape:
            self.differences += (_normal(s_ND) - t_ND).double().square().mean(-1).sum()

    def gather_(self, total: Callable[[Tensor], Tensor]) -> None:
        """Makes the sums those over all processes."""
        self.moments.gather_(total)
        self.differences = total(self.differences)

    def apart(self) -> float:
        """The loss without a map."""
        return float(self.differences) / max(self.moments.count, 1)

    def solve(self) -> tuple[nn.Linear, float]:
        """The map, and about the loss with it.

        What a map leaves unexplained, the share e of variance 1, becomes 2 - 2 sqrt(1 - e) once its outputs, whose
        variance is 1 - e, are normalised, too.
        """
        weight, bias = self.moments.solve(bias=True)
        line: nn.Linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, device=weight.device)  # type: ignore[no-untyped-call]
        line.weight.data.copy_(weight)
        line.bias.data.copy_(bias)
        left = self.moments.error(weight, bias) / len(bias)
        return line, 2 - 2 * math.sqrt(max(1 - left, 0.0))


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
