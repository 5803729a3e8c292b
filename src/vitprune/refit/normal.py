"""Least squares from running moments."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.calibrate import oas


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

    def add(self, x: Tensor, r: Tensor) -> None:
        """Take in samples: x (N, inputs), r (N, outputs)."""
        x, r = x.double(), r.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.r += r.sum(0)
        self.xx.addmm_(x.T, x)
        self.xr.addmm_(x.T, r)
        self.rr += float(r.square().sum())

    def solve(self, bias: bool) -> tuple[Tensor, Tensor, float, float]:
        """(D, d, before, after): r is about D x + d.

        D: (outputs, inputs) and d: (outputs,) float64, d zero where there is no bias. before, after: mean squared
        residual per sample, before and after. The covariance is shrunk towards its mean variance by the oracle
        approximating coefficient, which anchors D at zero where the samples say little.

        Source: ridge regression with the matrix of `oas`.
        """
        n = max(self.count, 1)
        mx, mr = (self.x / n, self.r / n) if bias else (torch.zeros_like(self.x), torch.zeros_like(self.r))
        c = self.xx / n - torch.outer(mx, mx)
        cross = self.xr / n - torch.outer(mx, mr)
        shrunk = oas(c, n)
        found = torch.linalg.solve(shrunk, cross, left=True)  # (inputs, outputs)
        shift = mr - found.T @ mx if bias else torch.zeros_like(mr)
        before = self.rr / n
        gained = 2 * float((found * cross).sum()) - float((found * (c @ found)).sum()) + float(mr.square().sum())
        return found.T.contiguous(), shift, before, before - gained
