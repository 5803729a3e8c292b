"""The ridge of a regression, by whether half of the samples predicts the others."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.calibrate import Moments, oas

RIDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the mean variance of the inputs


def best_ridge(halves: tuple[Moments, Moments], bias: bool) -> float | None:
    """The ridge, of `RIDGES`, with which either half of the samples predicts the other's residuals best.

    None where no change at all does better than any: the samples are too few to say anything.
    """
    found = _errors(*halves, bias) + _errors(*halves[::-1], bias)
    least = sum(half.rr / max(half.count, 1) for half in halves)
    best = int(found.argmin())
    return RIDGES[best] if float(found[best]) < least else None


def _errors(a: Moments, b: Moments, bias: bool) -> Tensor:
    """(len(RIDGES),) `b.error(*a.solve(bias, ridge))` for every ridge, from one decomposition.

    In the basis of a's covariance a ridge changes numbers instead of a matrix: with the eigenvalues l, the
    cross-covariance z and the other half's sums B and w in that basis, and u = 1 / (l + ridge), the squared error is
    rr - 2 u.v + u^T H u, where v = sum over outputs of z * w and H = B * (z z^T), elementwise.
    """
    c, cross, mx, mr = a.central(bias)
    values, basis = torch.linalg.eigh(oas(c, max(a.count, 1)))
    xx, xr, rr = b.about(mx, mr)
    z = basis.T @ cross
    v = (z * (basis.T @ xr)).sum(1)
    h = (basis.T @ xx @ basis) * (z @ z.T)
    step = torch.tensor(RIDGES, dtype=values.dtype, device=values.device) * c.trace() / len(c)
    u = 1 / (values + step.unsqueeze(1))  # (ridges, inputs)
    errors: Tensor = rr - 2 * u @ v + ((u @ h) * u).sum(1)
    return errors / max(b.count, 1)
