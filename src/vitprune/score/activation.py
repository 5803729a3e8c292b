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

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vitprune.arrays import Floats
from vitprune.calibrate import Replay, Site, images_of, sites
from vitprune.modes import evaluating
from vitprune.score.branches import First, effects
from vitprune.score.types import ScoreError, ScoreInputs, Scores
from vitprune.trace.graph import Graph, Group


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

    def add(self, x: Tensor, dim: int) -> None:
        """Take in a tensor whose dim `dim` is the axis."""
        flat = x.movedim(dim, -1).flatten(0, -2).double()
        self.count += len(flat)
        self.first += flat.sum(0)
        self.second += flat.square().sum(0)

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


def observe(inputs: ScoreInputs) -> Activations:
    """Activations around every linear layer, over all batches. Raises ScoreError without images."""
    reads: dict[str, Channel] = {}
    gives: dict[str, Channel] = {}
    replays: dict[int, tuple[Replay, dict[str, list[Site]]]] = {}
    parameters = dict(inputs.model.named_parameters(remove_duplicate=False))
    device = next(iter(parameters.values())).device
    with torch.no_grad(), evaluating(inputs.model):
        for batch in inputs.batches or ():
            images = images_of(batch, device)
            if len(images) not in replays:
                replay = Replay(inputs.model, images)
                replays[len(images)] = (replay, sites(replay.captured))
            replay, found = replays[len(images)]
            env, at = replay.start(images), 0
            order = sorted((s for same in found.values() for s in same), key=lambda s: replay.at[s.node])
            for site in order:
                replay.advance(env, at, at := replay.at[site.node])
                source = replay.nodes[at].args[0]
                weight = parameters[site.weight]
                x = env[getattr(source, "name", "")]
                reads.setdefault(site.weight, Channel.empty(weight.shape[1], device)).add(x, site.channel_dim)
                replay.advance(env, at, at := at + 1)
                if site.node in env:
                    y = env[site.node]
                    gives.setdefault(site.weight, Channel.empty(weight.shape[0], device)).add(y, site.channel_dim)
    if not reads:
        raise ScoreError("activation scores need images and linear layers, but got no batch, or the model has none")
    return Activations(reads, gives)


def contribution(inputs: ScoreInputs, *, central: bool) -> Scores:
    """Group name -> (lanes, size); central: variances instead of mean squares."""
    batches = First(inputs.batches or ())
    seen = observe(replace(inputs, batches=batches))
    norms = {
        name: tensor.detach().double().square().sum(tuple(d for d in range(tensor.dim()) if d != 1)).cpu().numpy()
        for name, tensor in inputs.model.named_parameters(remove_duplicate=False)
        if name in seen.reads
    }
    part = {name: channel.moment(central) * norms[name] for name, channel in seen.reads.items()}
    made = {name: channel.moment(central) for name, channel in seen.gives.items()}
    result = {g.name: _group(g, part, made) for g in inputs.graph.groups if g.kind != "block"}
    branches = effects(inputs.graph, inputs.model, batches.seen, central=central)
    result |= {name: np.full((1, 1), value) for name, value in branches.items()}
    return _filled(inputs.graph, result)


def _group(group: Group, part: dict[str, Floats], made: dict[str, Floats]) -> Floats | None:
    total, found = np.zeros((group.lanes, group.size)), False
    for member in group.members:
        if member.dim == 1 and member.tensor in part:
            total += part[member.tensor][member.index].sum(2)
            found = True
    if found:
        return total
    total += 1
    for member in group.members:
        if member.dim == 0 and member.tensor in made:
            total *= made[member.tensor][member.index].prod(2)
            found = True
    return total if found else None


def _filled(graph: Graph, found: dict[str, Floats | None]) -> Scores:
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
