"""How a mask is made differentiable."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Relaxation(Protocol):
    """From the trained numbers (units,) to the factors of a training step."""

    threshold: float  # of importance, above which a unit wants to stay

    def begin(self, lane: Tensor, done: float) -> None:
        """Before a step. lane: (units,) number of each unit's lane; done: share of the search that is over, 0..1."""

    @property
    def draws(self) -> bool:
        """Whether the factors of a training step differ from those that are evaluated."""

    def reseed(self, number: int, device: torch.device) -> None:
        """Before the factors of a step are drawn: equal numbers give equal draws, in every process."""

    def start(self, units: int) -> Tensor:
        """The first value of the trained numbers: everything stays."""

    def importance(self, alpha: Tensor) -> Tensor:
        """What ranks units."""

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What multiplies the weights in training, differentiable in `alpha`. hard: the 0 and 1 of the plan of now."""

    def presence(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What the cost counts for each unit, differentiable in `alpha`."""

    def evaluated(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """What multiplies the weights in validation, and in the plan's model."""

    def settle_(self, alpha: Tensor) -> None:
        """Puts the trained numbers in order after an optimizer step, in place."""

    def calm(self) -> None:
        """From now on the factors of training are those that are evaluated."""

    def inverse(self, importance: Tensor) -> Tensor:
        """Trained numbers of this importance, for starting from a plan."""


class StraightThrough:
    """theta = |alpha|, from 1, cut at 0.5; the gradient passes the cut unchanged.

    Source: L. Tredese, Politecnico di Torino, 2023; the gradient: arXiv 1308.3432, section 4. Unlike there alpha is
    held in 0.001..1: above, so that a unit that was important for long can still leave when its turn comes; below, as
    |alpha| would rise again on the other side of 0, where the optimizer's momentum carries it.
    """

    draws = False
    threshold = 0.5

    def reseed(self, number: int, device: torch.device) -> None:
        """Nothing."""

    def begin(self, lane: Tensor, done: float) -> None:
        """Nothing."""

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

    def calm(self) -> None:
        """Nothing: they are."""

    def settle_(self, alpha: Tensor) -> None:
        """Holds alpha in 0.001..1; at 0 the modulus has no slope."""
        alpha.clamp_(1e-3, 1)

    def inverse(self, importance: Tensor) -> Tensor:
        """The importance itself."""
        return importance


class HardConcrete:
    """L0 gates: a stretched, clipped concrete variable, whose chance to be above 0 the cost counts.

    `alpha` is log alpha. What is evaluated is the variable without noise, folded into the weights, where the plan keeps
    the unit.

    Source: arXiv 1712.01312, equations 10 to 13; beta 2/3, gamma -0.1, zeta 1.1.
    """

    threshold = 0.5
    beta, gamma, zeta = 2 / 3, -0.1, 1.1

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None  # torch's own until a seed is given
        self.draws = True

    def reseed(self, number: int, device: torch.device) -> None:
        """A generator of its own, whatever else a process draws."""
        self.generator = self.generator or torch.Generator(device)
        self.generator.manual_seed(number)

    def begin(self, lane: Tensor, done: float) -> None:
        """Nothing."""

    def start(self, units: int) -> Tensor:
        """log alpha 2.5: present with a chance of 0.98."""
        return torch.full((units,), 2.5)

    def importance(self, alpha: Tensor) -> Tensor:
        """The median of the concrete variable, 0..1."""
        return torch.sigmoid(alpha)

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """A draw, 0..1."""
        if not self.draws:
            return self.evaluated(alpha, hard)
        u = torch.rand(alpha.shape, generator=self.generator, device=alpha.device, dtype=alpha.dtype)
        u = u.clamp(1e-6, 1 - 1e-6)
        return self._stretched(torch.sigmoid((u.log() - (1 - u).log() + alpha) / self.beta))

    def presence(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """The chance that the factor is above 0."""
        return torch.sigmoid(alpha - self.beta * math.log(-self.gamma / self.zeta))

    def evaluated(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """The factor without noise where the plan keeps the unit, else 0."""
        return hard * self._stretched(torch.sigmoid(alpha))

    def calm(self) -> None:
        """No noise any more."""
        self.draws = False

    def settle_(self, alpha: Tensor) -> None:
        """Holds log alpha in -5..5, beyond which the sigmoid is flat."""
        alpha.clamp_(-5, 5)

    def inverse(self, importance: Tensor) -> Tensor:
        """-5..5."""
        return 10 * importance - 5


class TopK(StraightThrough):
    """The k most important units of each lane, k falling with the budget; no weight of the cost is needed.

    The gradient is that of a sigmoid around the middle between the last unit kept and the first one dropped, whose
    temperature falls from 1 to 0.05 of theta's range: in the end only units near the border still change places.

    Source: the straight-through top-k of arXiv 2005.07683 (movement pruning), section 4; the annealing is our own.
    """

    first, last = 1.0, 0.05

    def __init__(self) -> None:
        self.lane = torch.zeros(0, dtype=torch.int64)
        self.temperature = self.first

    def begin(self, lane: Tensor, done: float) -> None:
        """Sets the temperature, falling in equal factors."""
        self.lane, self.temperature = lane, self.first * (self.last / self.first) ** done

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """0 or 1, with the sigmoid's gradient."""
        theta = alpha.abs()
        lanes = int(self.lane[-1]) + 1
        far = torch.full((lanes,), 2.0, device=theta.device)
        low = far.scatter_reduce(0, self.lane, torch.where(hard > 0.5, theta.detach(), 2.0), "amin")
        high = (-far).scatter_reduce(0, self.lane, torch.where(hard > 0.5, -2.0, theta.detach()), "amax")
        middle = torch.where(high > -2, (low + high) / 2, low)[self.lane]
        soft = 4 * self.temperature * torch.sigmoid((theta - middle) / self.temperature)  # slope 1 at the border
        return hard + (soft - soft.detach())


class Scale(StraightThrough):
    """Real-valued factors, all of them kept until the end; an L1 penalty makes some small.

    Source: VTP, arXiv 2104.08500, equations 4 to 6.
    """

    threshold = -1.0

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """The numbers themselves."""
        return hard * alpha

    def presence(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """0 or 1: a gate costs as much whatever its value."""
        return hard

    def evaluated(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """The numbers of the units that stay: they end up folded into the weights."""
        return hard * alpha

    def settle_(self, alpha: Tensor) -> None:
        """Nothing: any sign and size."""


RELAXATIONS: dict[str, type[StraightThrough] | type[HardConcrete]] = {
    "straight-through": StraightThrough,
    "hard-concrete": HardConcrete,
    "top-k": TopK,
    "scale": Scale,
}
