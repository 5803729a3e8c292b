"""Least squares from running moments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitprune.calibrate.covariance import add_products_, oas, weighted


class Moments:
    """Sums over samples of an input x and a residual r: all that a linear regression of r on x needs.

    Kept in float64; their size does not depend on the number of samples.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.count = 0
        self.x = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.r = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.xr = torch.zeros(inputs, outputs, dtype=torch.float64, device=device)
        self.rr = 0.0  # sum of the squared residual

    def add(self, x: Tensor, r: Tensor, weights: Tensor | None = None) -> None:
        """Take in samples: x (N, inputs), r (N, outputs); weights (N,), of mean 1, say how much each counts."""
        root = None if weights is None else weights.double().sqrt()  # so that every product below is weighted once
        x, r = weighted(x, root), weighted(r, root)
        self.count += len(x)
        self.x += x.sum(0) if root is None else root @ x
        self.r += r.sum(0) if root is None else root @ r
        self.xr.addmm_(x.T, r)
        self.rr += float(torch.linalg.vector_norm(r) ** 2)
        add_products_(self.xx, x)

    def gather_(self, total: Callable[[Tensor], Tensor]) -> None:
        """Makes the sums those over all processes; total: gives the sum of a tensor over them."""
        about = total(torch.tensor([float(self.count), self.rr], dtype=torch.float64, device=self.x.device))
        self.count, self.rr = int(about[0]), float(about[1])
        self.x, self.r, self.xx, self.xr = total(self.x), total(self.r), total(self.xx), total(self.xr)

    def idle(self) -> int:
        """How many inputs never vary."""
        n = max(self.count, 1)
        power = self.xx.diagonal() / n
        variance = power - (self.x / n).square()
        return int((variance <= 1e-12 * power.clamp_min(1e-30)).sum())

    def __add__(self, other: Moments) -> Moments:
        """The sums over the samples of both."""
        total = Moments(len(self.x), len(self.r), self.x.device)
        total.count, total.rr = self.count + other.count, self.rr + other.rr
        total.x, total.r = self.x + other.x, self.r + other.r
        total.xx, total.xr = self.xx + other.xx, self.xr + other.xr
        return total

    def central(self, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(covariance, cross-covariance (inputs, outputs), mean of x, mean of r); without a bias the means are 0."""
        n = max(self.count, 1)
        mx, mr = (self.x / n, self.r / n) if bias else (torch.zeros_like(self.x), torch.zeros_like(self.r))
        return self.xx / n - torch.outer(mx, mx), self.xr / n - torch.outer(mx, mr), mx, mr

    def about(self, mx: Tensor, mr: Tensor) -> tuple[Tensor, Tensor, float]:
        """Sums of (x - mx)(x - mx)^T, (x - mx)(r - mr)^T and the squared r - mr; mx (inputs,), mr (outputs,)."""
        n = self.count
        away = self.x - n * mx
        xx = self.xx - torch.outer(mx, self.x) - torch.outer(away, mx)
        xr = self.xr - torch.outer(mx, self.r) - torch.outer(away, mr)
        return xx, xr, self.rr - float(mr @ (2 * self.r - n * mr))

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Mean squared residual per sample of r - (change x + shift)."""
        d = change.T  # (inputs, outputs)
        inner = 2 * (d * self.xr).sum() - (d * (self.xx @ d)).sum() + 2 * self.r @ shift
        inner = inner - 2 * (self.x @ d) @ shift - self.count * shift.square().sum()
        return (self.rr - float(inner)) / max(self.count, 1)

    def solve(self, bias: bool, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
        """(D, d): r is about D x + d.

        D: (outputs, inputs) and d: (outputs,) float64, d zero where there is no bias. The covariance is shrunk towards
        its mean variance by the oracle approximating coefficient, which anchors D at zero where the samples say little;
        `ridge` times the mean variance is added to it.

        Source: ridge regression with the matrix of `oas`.
        """
        c, cross, mx, mr = self.central(bias)
        shrunk = oas(c, max(self.count, 1))
        if ridge:
            shrunk.diagonal().add_(ridge * c.trace() / len(c))
        found = torch.linalg.solve(shrunk, cross, left=True).T.contiguous()  # (outputs, inputs)
        return found, mr - found @ mx if bias else torch.zeros_like(mr)
