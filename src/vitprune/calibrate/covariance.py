"""Second moments of what a layer reads, and their shrinkage."""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = 256  # inputs whose products with others are taken at once


def weighted(x: Tensor, root: Tensor | None) -> Tensor:
    """x (N, inputs) in float64, its rows times `root` (N,), the roots of how much they count; None: as they are."""
    if root is None:
        return x.double()
    single = root.to(torch.promote_types(x.dtype, torch.float32))  # half as much to move as in float64
    return (x * single.unsqueeze(1)).double()


def add_products_(total: Tensor, x: Tensor) -> None:
    """Adds x^T x (inputs, inputs) to `total`: the products above the diagonal, and their mirror image."""
    for at in range(0, x.shape[1], WIDE):
        rows = x[:, at : at + WIDE].T @ x[:, at:]
        total[at : at + WIDE, at:] += rows
        total[at + WIDE :, at : at + WIDE] += rows[:, WIDE:].T


class Covariance:
    """Running sums of x and x x^T, in float64; their size does not depend on the number of samples."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.count = 0
        self.first = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.second = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Take in samples (..., inputs); weights (...), of mean 1, say how much each counts."""
        root = None if weights is None else weights.flatten().double().sqrt()
        flat = weighted(x.flatten(0, -2), root)
        self.count += len(flat)
        self.first += flat.sum(0) if root is None else root @ flat
        add_products_(self.second, flat)

    def matrix(self, central: bool) -> Tensor:
        """(inputs, inputs): E[x x^T]; central: of x minus its mean."""
        n = max(self.count, 1)
        mean = self.first / n
        return self.second / n - torch.outer(mean, mean) if central else self.second / n


def oas(covariance: Tensor, samples: int) -> Tensor:
    """The covariance (n, n) shrunk towards its mean variance times the identity, as far as the samples are few.

    Never singular: the least shrinkage is 1e-6.

    Source: Chen, Wiesel, Eldar, Hero, IEEE Trans. Signal Process. 58 (2010), equation 23 (the oracle approximating
    shrinkage estimator).
    """
    size = len(covariance)
    trace = covariance.trace()
    squares = covariance.square().sum()
    top = (1 - 2 / size) * squares + trace.square()
    bottom = (samples + 1 - 2 / size) * (squares - trace.square() / size)
    share = float((top / bottom).clamp(1e-6, 1)) if float(bottom) > 0 else 1.0
    shrunk = (1 - share) * covariance
    shrunk.diagonal().add_(share * trace / size + 1e-12)
    return shrunk
