"""The token stream in the basis of its principal components."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vitprune.rotate.stream import Norm, Stream
from vitprune.trace.graph import IndexArray

SMALL = 1e-3  # of a norm's largest weight: what is smaller is not divided by


def fold_problem(stream: Stream, tensors: Mapping[str, Tensor]) -> str:
    """Why the norms' affine parts cannot be moved into the layers behind them, or "" when they can."""
    for norm in stream.norms:
        if not _stays(norm, tensors) and any(bias is None for _, bias in norm.readers):
            return f"{norm.weight} has very small values, and a layer behind it no bias of its own"
    return ""


def _stays(norm: Norm, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a norm keeps its shift, divided by its factor; else the shift goes into the readers' biases."""
    if norm.bias is None or norm.weight is None:
        return True
    scale = tensors[norm.weight].abs()
    return float(scale.min()) >= SMALL * float(scale.max())


def fold(stream: Stream, tensors: Mapping[str, Tensor]) -> None:
    """Norms' and layer scales' factors into the layers beside them, in place: the norms then treat all channels alike.

    W (g x + b) = (W g) (x + b / g); where g is almost zero somewhere, (W g) x + W b instead.
    """
    columns = {m.tensor: m.index[0] for m in stream.group.members if m.dim == 1}
    with torch.no_grad():
        for gamma, weight, bias in stream.scales:
            scale = tensors[gamma].double()
            rows = tensors[weight]
            rows.copy_(rows.double() * scale.view(-1, *[1] * (rows.dim() - 1)))
            if bias is not None:
                tensors[bias].copy_(tensors[bias].double() * scale)
        for gamma in {g for g, _, _ in stream.scales}:
            tensors[gamma].fill_(1)
        stays = {id(norm): _stays(norm, tensors) for norm in stream.norms}
        for norm in stream.norms:
            for weight, bias in norm.readers:
                if not stays[id(norm)] and bias is not None and norm.bias is not None:
                    _add_shift(tensors[bias], tensors[weight], columns[weight], tensors[norm.bias])
                if norm.weight is not None:
                    _scale_columns(tensors[weight], columns[weight], tensors[norm.weight])
        for norm in stream.norms:
            if norm.bias is not None and norm.weight is not None:
                shift = tensors[norm.bias].double() / tensors[norm.weight].double()
                tensors[norm.bias].copy_(shift if stays[id(norm)] else torch.zeros_like(shift))
            if norm.weight is not None:
                tensors[norm.weight].fill_(1)


def _scale_columns(weight: Tensor, index: IndexArray, scale: Tensor) -> None:
    """Columns of a reader times the factors of the channels that they read; index (channels, k)."""
    moved = weight.detach().movedim(1, 0)
    for at in torch.as_tensor(index, device=weight.device).T:
        factor = scale.double().view(-1, *[1] * (moved.dim() - 1))
        moved[at] = (moved[at].double() * factor).to(weight.dtype)


def _add_shift(bias: Tensor, weight: Tensor, index: IndexArray, shift: Tensor) -> None:
    for at in torch.as_tensor(index, device=weight.device).T:
        bias.copy_(bias.double() + weight.flatten(1)[:, at].double() @ shift.double())


def basis(moment: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """(Q, energy): an orthogonal matrix (n, n) whose first rows carry most of E[x x^T], and what each row carries.

    centred: Q maps the vector of ones to itself, so that a norm that takes the mean off gives Q times what it gave.
    The rows are then the principal components of the rest, turned by the reflection that sends the last axis to the
    direction of ones: each row differs from its component by a share of about 1/n of the sum of all.

    Source: SliceGPT (Ashkboos et al., arXiv 2401.15024) for norms without mean; the reflection is ours, so that layer
    norms stay as they are.
    """
    n = len(moment)
    if not centred:
        _, vectors = torch.linalg.eigh(moment)
        q = vectors.flip(1).T
    else:
        ones = torch.full((n,), 1 / math.sqrt(n), dtype=moment.dtype, device=moment.device)
        project = torch.eye(n, dtype=moment.dtype, device=moment.device) - torch.outer(ones, ones)
        inside = project @ moment @ project
        top = inside.diagonal().sum() + 1.0
        _, vectors = torch.linalg.eigh(inside - top * torch.outer(ones, ones))  # the first one is that of ones
        components = torch.cat([vectors[:, 1:].flip(1), ones.unsqueeze(1)], 1)
        axis = -ones.clone()
        axis[-1] += 1
        axis = axis / axis.norm()
        q = components.T - 2 * torch.outer(axis, axis @ components.T)
    energy = (q @ moment * q).sum(1)
    order = torch.argsort(energy, descending=True, stable=True)
    return q[order].contiguous(), energy[order]


def turn(stream: Stream, q: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """The stream's layers, biases, positions and norms in the basis of the rows of q, in place."""
    ones = {n.weight for n in stream.norms} | {g for g, _, _ in stream.scales}
    with torch.no_grad():
        for member in stream.group.members:
            if member.tensor in ones:
                continue
            moved = tensors[member.tensor].detach().movedim(member.dim, 0)
            for index in torch.as_tensor(member.index[0], device=moved.device).T:
                rows = moved[index].double().reshape(len(index), -1)
                moved[index] = (q @ rows).view(-1, *moved.shape[1:]).to(moved.dtype)
