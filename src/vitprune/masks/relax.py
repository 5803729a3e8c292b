"""How a mask is made differentiable."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Relaxation(Protocol):
    """From the trained numbers (units,) to the factors of a training step."""

    @property
    def draws(self) -> bool:
        """Whether the factors of a training step differ from those that are evaluated."""

    def start(self, units: int) -> Tensor:
        """The first value of the trained numbers: everything stays."""

    def importance(self, alpha: Tensor) -> Tensor:
        """What ranks units; above 0.5 a unit wants to stay."""

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What multiplies the weights in training, differentiable in `alpha`. hard: the 0 and 1 of the plan of now."""

    def presence(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What the cost counts for each unit, differentiable in `alpha`."""

    def evaluated(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What multiplies the weights in validation, and in the plan's model."""

    def settle_(self, alpha: Tensor) -> None:
        """Puts the trained numbers in order after an optimizer step, in place."""

    def inverse(self, importance: Tensor) -> Tensor:
        """Trained numbers of this importance, for starting from a plan."""


class StraightThrough:
    """theta = |alpha|, from 1, cut at 0.5; the gradient passes the cut unchanged.

    Source: L. Tredese, Politecnico di Torino, 2023; the gradient: arXiv 1308.3432, section 4. Unlike there |alpha| is
    held at 1 at most, so that a unit that was important for long can still leave when its turn comes.
    """

    draws = False

    def start(self, units: int) -> Tensor:
        """Ones."""
        return torch.ones(units)

    def importance(self, alpha: Tensor) -> Tensor:
        """theta."""
        return alpha.abs()

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """0 or 1, with theta's gradient."""
        theta = alpha.abs()
        return hard + (theta - theta.detach())

    def presence(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """0 or 1, with theta's gradient."""
        return self.factors(alpha, hard)

    def evaluated(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """0 or 1."""
        return hard

    def settle_(self, alpha: Tensor) -> None:
        """Holds alpha in -1..1."""
        alpha.clamp_(-1, 1)

    def inverse(self, importance: Tensor) -> Tensor:
        """The importance itself."""
        return importance
