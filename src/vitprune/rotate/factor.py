"""The change of basis of one head: which directions of a product carry most, given what flows through it."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 1e-6  # of the mean eigenvalue, added to both second moments, so that directions without use stay finite


def directions(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, energy) with A B^T = 1, so that (A^T p) . (B^T q) = p . q, the best dims first.

    left, right: (..., d, d) float64 second moments E[p p^T] and E[q q^T] of two vectors that are multiplied. With the
    first r columns of A and B alone, E[(p . q - (A_r^T p) . (B_r^T q))^2] for independent p and q is the smallest that
    any r dims can have: with left = L L^T and right = R R^T, the singular value decomposition L^T R = U S V^T gives
    A = L^-T U S^1/2 and B = R^-T V S^1/2. energy: (..., d), S^2, falling: what is lost without each dim.

    Source: the activation-weighted truncation of W_q^T W_k and W_o W_v as in ASVD/SVD-LLM (Wang et al., arXiv
    2403.07378) and CORP, written for a single head; the square roots of S are on both sides, so that both stay of
    the same scale.
    """
    lower, right_lower = _root(left), _root(right)
    u, s, vh = torch.linalg.svd(lower.mT @ right_lower)
    s = s.clamp_min(torch.finfo(s.dtype).tiny + s[..., :1] * 1e-12)
    middle = s.sqrt().unsqueeze(-2)
    a = torch.linalg.solve_triangular(lower.mT, u * middle, upper=True)
    b = torch.linalg.solve_triangular(right_lower.mT, vh.mT * middle, upper=True)
    return a, b, s.square()


def _root(moment: Tensor) -> Tensor:
    """The lower triangular root of a damped second moment."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    damp = DAMPING * mean + torch.finfo(moment.dtype).tiny ** 0.5
    root: Tensor = torch.linalg.cholesky(moment + torch.diag_embed(damp.unsqueeze(-1).expand(moment.shape[:-1])))
    return root
