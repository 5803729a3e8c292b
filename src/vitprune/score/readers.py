"""The layers that read a group's units, with the covariance of what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitprune.arrays import Floats, Scores
from vitprune.calibrate import Covariance, Sensitivity, Site, oas, visit
from vitprune.score.activation import Activations, Channel, filled, without_readers
from vitprune.score.branches import First, branch_scores
from vitprune.score.types import ScoreError, ScoreInputs
from vitprune.trace.graph import Group


@dataclass(slots=True)
class Reader:
    """One layer as a group sees it, its columns in the order of the group's units."""

    weight: Tensor  # (outputs, inputs) float64
    inverse: Tensor  # (inputs, inputs) of the shrunk covariance of the inputs
    columns: Tensor  # (lanes, size, k) positions of the units among the inputs

    def costs(self) -> Tensor:
        """(lanes, size): what the layer's squared output error grows by without a unit, the other columns refitted.

        tr(W_u (H^-1)_uu^-1 W_u^T), for one column |w|^2 / [H^-1]_jj.
        """
        if self.columns.shape[2] == 1:
            j = self.columns[:, :, 0]
            return self.weight.square().sum(0)[j] / self.inverse.diagonal()[j]
        found = torch.zeros(self.columns.shape[:2], dtype=torch.float64, device=self.weight.device)
        for lane, units in enumerate(self.columns):
            blocks = self.inverse[units.unsqueeze(2), units.unsqueeze(1)]
            slices = self.weight[:, units.flatten()].T.view(*units.shape, -1)
            found[lane] = (slices * torch.linalg.solve(blocks, slices)).sum((1, 2))
        return found


def read(
    inputs: ScoreInputs, felt: Mapping[str, Sensitivity] | None = None
) -> tuple[dict[str, list[Reader]], Activations]:
    """Group name -> its readers (groups that no linear layer reads: none), and sums over all layers' outputs.

    felt: with it, errors are those of the model's output: positions count by their weights, outputs of a layer by the
    root of their squared gradient.

    A layer with a bias has its inputs' mean taken off, since the bias makes up for it. The covariances of all layers
    that read a wanted group are held at once: 8 bytes times the square of every width.

    Raises ScoreError without images.
    """
    parameters = dict(inputs.model.named_parameters(remove_duplicate=False))
    wanted = {m.tensor for g in inputs.wanted() for m in g.members if m.dim == 1 and m.tensor in parameters}
    sums: dict[str, Covariance] = {}
    biased: dict[str, bool] = {}
    batches = First(inputs.batches or ())
    seen = Activations({}, {})

    def see(site: Site, x: Tensor, y: Tensor) -> None:
        if site.weight in wanted:
            known = felt.get(site.weight) if felt else None
            counts = None if known is None else known.weights(x)
            sums.setdefault(site.weight, Covariance(x.shape[-1], x.device)).add(x, counts)
            biased[site.weight] = biased.get(site.weight, True) and site.bias is not None
        seen.gives.setdefault(site.weight, Channel.empty(y.shape[-1], y.device)).add(y)

    visit(inputs.model, batches, see)
    seen.images.extend(batches.seen)
    if not seen.gives:
        raise ScoreError("activation scores need images and linear layers, but got no batch, or the model has none")
    inverses = {n: torch.linalg.inv(oas(s.matrix(biased[n]), s.count)) for n, s in sums.items()}
    found: dict[str, list[Reader]] = {}
    for group in inputs.wanted():
        found[group.name] = [
            Reader(
                _felt_rows(parameters[m.tensor], m.tensor, felt),
                inverses[m.tensor],
                torch.as_tensor(m.index, device=parameters[m.tensor].device),
            )
            for m in group.members
            if m.dim == 1 and m.tensor in inverses
        ]
    return found, seen


def _felt_rows(weight: Tensor, name: str, felt: Mapping[str, Sensitivity] | None) -> Tensor:
    """(outputs, inputs) float64: the weight, its rows by how the model's output feels them."""
    rows = weight.detach().flatten(1).double()
    if not felt:
        return rows
    if name in felt:
        return rows * felt[name].channels.sqrt().unsqueeze(1)
    means = torch.stack([known.channels.mean() for known in felt.values()])
    return rows * float(means.median().sqrt())


def completed(
    inputs: ScoreInputs,
    found: dict[str, Floats],
    seen: Activations,
    other: Callable[[Group], Floats | None] | None = None,
) -> Scores:
    """Scores of every group: those given; for groups that no layer reads what `other`, or else `energy`, gives them."""
    made = {name: channel.moment(False) for name, channel in seen.gives.items()}
    rest = other or (lambda group: without_readers(group, made))
    found_or_made = {g.name: found[g.name] if g.name in found else rest(g) for g in inputs.graph.groups}
    return filled(inputs.graph, {**found_or_made, **branch_scores(inputs, seen.images)})
