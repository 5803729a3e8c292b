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
from vitprune.score.types import ScoreError
from vitprune.trace.graph import Graph, Group

Sums = tuple[Floats, int]  # per position of a dim the sum of |w|^p, and elements per position


def mean_magnitude(graph: Graph, model: nn.Module, p: int) -> Scores:
    """Group name -> (lanes, size) of (mean over a unit's parameter elements of |w|^p)^(1/p), for p 1 or 2.

    Raises ScoreError for parameters without values (a model on the meta device).
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in parameters.items():
        if tensor.is_meta:
            raise ScoreError(f"scores need weights, but parameter {name!r} is on the meta device; load the model first")
    cache: dict[tuple[str, int], Sums] = {}
    result: dict[str, Floats] = {}
    for group in graph.groups:
        total, count = np.zeros((group.lanes, group.size)), 0
        for member in group.members:
            if member.tensor not in parameters:
                continue
            key = (member.tensor, member.dim)
            if key not in cache:
                cache[key] = _along(parameters[member.tensor], member.dim, p)
            sums, each = cache[key]
            total += sums[member.index].sum(axis=2)
            count += each * member.index.shape[2]
        if not count:
            total, count = _branch(group, parameters, p)
        result[group.name] = (total / max(count, 1)) ** (1.0 / p)
    return result


def _along(tensor: Tensor, dim: int, p: int) -> Sums:
    other = [d for d in range(tensor.dim()) if d != dim]
    with torch.no_grad():
        data = tensor.detach() if tensor.dtype in (torch.float32, torch.float64) else tensor.detach().float()
        powers = data.abs() if p == 1 else data.square()  # vector_norm over the first dim is ten times slower
        sums = powers.sum(dim=other) if other else powers
    return sums.to(torch.float64).cpu().numpy(), tensor.numel() // max(tensor.shape[dim], 1)


def _branch(group: Group, parameters: dict[str, nn.Parameter], p: int) -> Sums:
    inside = [t for n, t in parameters.items() if any(n.startswith(m + ".") for m in group.modules)]
    with torch.no_grad():
        total = sum(float(torch.linalg.vector_norm(t.detach().float(), p)) ** p for t in inside)
    return np.full((group.lanes, group.size), total), sum(t.numel() for t in inside)
