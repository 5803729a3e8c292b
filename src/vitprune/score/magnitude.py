"""Mean magnitude of the parameter slices behind each unit.

For a unit, all parameter elements of all its members are taken together: for an MLP unit a row of fc1, its bias and a
column of fc2. The sum over them of |w|^p is divided by their number before the p-th root, so the value is a typical
magnitude of one element: units of a head (thousands of elements) and of an MLP (hundreds) can be compared. Buffers do
not count. A block's value is the same mean over all parameters of the modules of its branch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Floats, Scores
from vitprune.score.reduce import reduce_slices
from vitprune.score.types import ScoreError
from vitprune.trace.graph import Graph, Group

CHUNK = 2**15  # elements: below the size from which torch splits the work over threads
Sums = tuple[Floats, int]  # per position of a dim the sum of |w|^p, and elements per position


def mean_magnitude(graph: Graph, model: nn.Module, p: int, reduction: str = "default") -> Scores:
    """Group name -> (lanes, size) of (mean over a unit's parameter elements of |w|^p)^(1/p), for p 1 or 2.

    reduction: "default" as above; "sum" without the division; "mean", "max": of such means, one per slice of the unit.

    Raises ScoreError for parameters without values (a model on the meta device).
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in parameters.items():
        if tensor.is_meta:
            raise ScoreError(f"scores need weights, but parameter {name!r} is on the meta device; load the model first")
    cache: dict[tuple[str, int], Sums] = {}
    result: dict[str, Floats] = {}
    for group in graph.groups:
        parts: list[Floats] = []
        counts: list[int] = []
        for member in group.members:
            if member.tensor not in parameters:
                continue
            key = (member.tensor, member.dim)
            if key not in cache:
                cache[key] = _along(parameters[member.tensor], member.dim, p)
            sums, each = cache[key]
            parts.append(sums[member.index].sum(axis=2))
            counts.append(each * member.index.shape[2])
        if not sum(counts):
            total, count = _branch(group, parameters, p)
            parts, counts = [total], [count]
        if reduction in ("mean", "max"):
            each_mean = [(part / max(count, 1)) ** (1.0 / p) for part, count in zip(parts, counts, strict=True)]
            result[group.name] = reduce_slices(each_mean, reduction)
        else:
            count = 1 if reduction == "sum" else max(sum(counts), 1)
            result[group.name] = (np.sum(parts, axis=0) / count) ** (1.0 / p)
    return result


def _along(tensor: Tensor, dim: int, p: int) -> Sums:
    """A few rows at a time, which stay in the cache: many times faster than the whole tensor's powers at once."""
    other = [d for d in range(tensor.dim()) if d != dim]
    each = tensor.numel() // max(tensor.shape[dim], 1)
    with torch.no_grad():
        data = tensor.detach()
        sums = torch.zeros(tensor.shape[dim], dtype=torch.float64, device=data.device)
        rows, at = max(1, CHUNK * max(len(data), 1) // max(data.numel(), 1)), 0
        for start in range(0, len(data), rows):
            part = data[start : start + rows]
            part = part if part.dtype in (torch.float32, torch.float64) else part.float()
            powers = part.abs() if p == 1 else part.square()
            found = powers.sum(dim=other) if other else powers
            if dim == 0:
                sums[at : at + len(part)] = found
            else:
                sums += found
            at += len(part)
    return sums.cpu().numpy(), each


def _branch(group: Group, parameters: dict[str, nn.Parameter], p: int) -> Sums:
    inside = [t for n, t in parameters.items() if any(n.startswith(m + ".") for m in group.modules)]
    with torch.no_grad():
        total = sum(float(torch.linalg.vector_norm(t.detach().float(), p)) ** p for t in inside)
    return np.full((group.lanes, group.size), total), sum(t.numel() for t in inside)
