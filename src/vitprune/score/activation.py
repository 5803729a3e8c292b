"""What each unit contributes to the layers that read it, from activations on calibration images.

A unit's positions on the input axis of a linear layer hold activations x_j, which the layer multiplies by its columns
w_j. Their part in the layer's output has the energy E[x_j^2] |w_j|^2, and the variance Var[x_j] |w_j|^2: what is left
of it when the mean is put into the bias. A unit's score is the sum over its positions in all layers that read it. Both
do not change when a unit's producing row is scaled by a and its reading column by 1/a.

Query/key dims are read by no layer but by each other: their score is the product of the energies (variances) of the
unit's positions on the outputs of the layers that make them, which is the energy of its term in q.k for independent
tokens. A whole branch scores the energy (variance) of what it adds to the model's output, see `branches`: its energy in
the residual stream says little of what is lost without it. A unit that none of this reaches (its consumer is no linear
layer) gets the largest score of its kind, so that it is not taken first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitprune.arrays import Floats
from vitprune.calibrate import Site, visit
from vitprune.score.branches import First, branch_scores
from vitprune.score.reduce import reduce_slices
from vitprune.score.types import ScoreError, ScoreInputs, Scores
from vitprune.trace.graph import Graph, Group

CACHED = 2**17  # numbers that a processor is given at once: 1 MiB of float64, nine times quicker than all of them


@dataclass(slots=True)
class Channel:
    """Running sums over one axis."""

    count: int
    first: Tensor  # sum of x, float64
    second: Tensor  # sum of x^2

    @classmethod
    def empty(cls, size: int, device: torch.device) -> Channel:
        """Sums over nothing."""
        zeros = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.clone())

    def add(self, x: Tensor) -> None:
        """Take in a tensor whose last dim is the axis."""
        flat = x.flatten(0, -2)
        self.count += len(flat)
        rows = CACHED // x.shape[-1] if x.device.type == "cpu" else len(flat)
        for part in torch.split(flat, max(1, rows)):
            wide = part.to(torch.float64, copy=True)
            self.first += wide.sum(0)
            self.second += wide.square_().sum(0)

    def moment(self, central: bool) -> Floats:
        """Variance, or mean square, per position."""
        mean = self.first / max(self.count, 1)
        found = self.second / max(self.count, 1) - (mean.square() if central else 0)
        result: Floats = found.clamp_min(0).cpu().numpy()
        return result


@dataclass(frozen=True, slots=True)
class Activations:
    """Sums per linear weight: of what its layer reads and of what it gives."""

    reads: dict[str, Channel]
    gives: dict[str, Channel]
    images: list[Tensor] = field(default_factory=list)  # the first of them, for scores of branches


def observe(inputs: ScoreInputs) -> Activations:
    """Activations around every linear layer, over all batches. Raises ScoreError without images."""
    reads: dict[str, Channel] = {}
    gives: dict[str, Channel] = {}

    def see(site: Site, x: Tensor, y: Tensor) -> None:
        for held, value in ((reads, x), (gives, y)):
            held.setdefault(site.weight, Channel.empty(value.shape[-1], value.device)).add(value)

    batches = First(inputs.batches or ())
    visit(inputs.model, batches, see)
    if not reads:
        raise ScoreError("activation scores need images and linear layers, but got no batch, or the model has none")
    return Activations(reads, gives, batches.seen)


def contribution(inputs: ScoreInputs, *, central: bool) -> Scores:
    """Group name -> (lanes, size); central: variances instead of mean squares."""
    seen = observe(inputs)
    norms = {
        name: tensor.detach().double().square().sum(tuple(d for d in range(tensor.dim()) if d != 1)).cpu().numpy()
        for name, tensor in inputs.model.named_parameters(remove_duplicate=False)
        if name in seen.reads
    }
    part = {name: channel.moment(central) * norms[name] for name, channel in seen.reads.items()}
    made = {name: channel.moment(central) for name, channel in seen.gives.items()}
    result = {g.name: _group(g, part, made, inputs.reduction) for g in inputs.graph.groups}
    return filled(inputs.graph, {**result, **branch_scores(inputs, seen.images, central=central)})


def _group(group: Group, part: dict[str, Floats], made: dict[str, Floats], reduction: str) -> Floats | None:
    found = [part[m.tensor][m.index].sum(2) for m in group.members if m.dim == 1 and m.tensor in part]
    return reduce_slices(found, reduction) if found else without_readers(group, made)


def without_readers(group: Group, made: dict[str, Floats]) -> Floats | None:
    """Score of a group that no layer reads, by the moments of what its layers give; None where that says nothing."""
    total, found = np.ones((group.lanes, group.size)), False
    for member in group.members:
        if member.dim == 0 and member.tensor in made:
            total *= made[member.tensor][member.index].prod(2)
            found = True
    return total if found else None


def filled(graph: Graph, found: dict[str, Floats | None]) -> Scores:
    """Scores of every group; None becomes the largest score of the group's kind."""
    largest: dict[str, float] = {}
    for group in graph.groups:
        values = found.get(group.name)
        if values is not None:
            largest[group.kind] = max(largest.get(group.kind, 0.0), float(values.max()))
    return {
        g.name: np.full((g.lanes, g.size), largest.get(g.kind, 1.0))
        if (values := found.get(g.name)) is None
        else values
        for g in graph.groups
    }
