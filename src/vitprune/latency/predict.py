"""The table as a function of sizes that has a gradient: what masks are pressed with while they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vitprune.allocate.ranking import Cluster
from vitprune.arrays import Floats
from vitprune.latency.table import Table

NEAR = 1e-9  # shares that differ by less are the same


class Prediction:
    """Predicted time as a share of the dense model's, multilinear between the measured sizes.

    At permitted sizes it is what the solver counts, whole branches included: a branch's time is multiplied by the size
    of its block. Clusters that share an axis stand where the mean of their shares is. The gradient is the table's slope
    between the measured sizes on either side; at a measured size it is the slope below, what the next unit that goes
    would save. Below the smallest permitted size the time stays, and has no slope.

    Letters: B branches, D axes, K measured sizes of an axis, C corners of a cell.
    """

    def __init__(
        self, clusters: Sequence[Cluster], table: Table, names: Sequence[str], device: torch.device | str = "cpu"
    ) -> None:
        """names: the groups whose sizes are given, in their order; the others keep their dense size."""
        structure = table.structure
        place = {name: i for i, name in enumerate(names)}
        count = len(structure.branches)
        wide = [[i for i, p in enumerate(points) if len(p) > 1] for points in table.grid.points]
        depth = max(1, *(len(w) for w in wide))
        knots = [[table.knots(b, axis) for axis in own] for b, own in enumerate(wide)]
        most = max(2, *(len(k) for own in knots for k in own)) if any(knots) else 2
        ruler = np.full((count, depth, most), np.inf)
        ruler[:, :, :2] = (0.0, 1.0)  # where there is no axis
        cells = np.zeros((count, depth), dtype=np.int64)
        strides = np.zeros((count, depth), dtype=np.int64)
        shares = np.zeros((count, depth, len(names) + 1))  # the last column is of the constant 1
        offsets = np.cumsum([0, *(v.size for v in table.values)])[:-1]
        blocks = np.full(count, len(names))
        for b, branch in enumerate(structure.branches):
            axes, shape = structure.axes(branch), [len(k) for k in knots[b]]
            for d, (axis, own) in enumerate(zip(wide[b], knots[b], strict=True)):
                ruler[b, d, : len(own)] = own
                ruler[b, d, len(own) :] = np.inf
                cells[b, d] = len(own) - 2
                strides[b, d] = int(np.prod(shape[d + 1 :]))
                for cluster in axes[axis].clusters:
                    groups = clusters[cluster].groups
                    share = 1 / (len(axes[axis].clusters) * len(groups))
                    for group in groups:
                        size = int(clusters[cluster].sizes[-1])
                        if group.name in place:
                            shares[b, d, place[group.name]] += share / size
                        else:
                            shares[b, d, -1] += share
            if branch.block is not None:
                first = clusters[branch.block].groups[0].name
                blocks[b] = place.get(first, len(names))
        corners = np.array(list(product((0, 1), repeat=depth)))
        self.times = torch.as_tensor(np.concatenate([v.ravel() for v in table.values]), device=device)
        self.knots_BDK = torch.as_tensor(ruler, device=device)
        self.cells_BD = torch.as_tensor(cells, device=device)
        self.strides_BD = torch.as_tensor(strides, device=device)
        self.shares = torch.as_tensor(shares.reshape(count * depth, -1), device=device)
        self.offsets_B = torch.as_tensor(offsets, device=device)
        self.blocks_B = torch.as_tensor(blocks, device=device)
        self.corners_C1D = torch.as_tensor(corners[:, None], device=device)
        self.one = torch.ones(1, dtype=torch.float64, device=device)

    def __call__(self, sizes: Tensor) -> Tensor:
        """A float64 scalar for the (groups,) sizes: 1 is about the dense model."""
        given = torch.cat([sizes.double(), self.one])
        place_BD = (self.shares @ given).view(self.cells_BD.shape)
        cell_BD = (self.knots_BDK < place_BD.detach()[..., None] - NEAR).sum(-1) - 1
        cell_BD = torch.minimum(cell_BD.clamp_min(0), self.cells_BD)
        low_BD = self.knots_BDK.gather(2, cell_BD[..., None])[..., 0]
        high_BD = self.knots_BDK.gather(2, cell_BD[..., None] + 1)[..., 0]
        part_BD = (place_BD - low_BD) / (high_BD - low_BD)
        outside_BD = (place_BD < low_BD - NEAR) | (place_BD > high_BD + NEAR)
        part_BD = torch.where(outside_BD, part_BD.detach().clamp(0, 1), part_BD)
        weight_CB = (self.corners_C1D * part_BD + (1 - self.corners_C1D) * (1 - part_BD)).prod(-1)
        at_CB = self.offsets_B + ((cell_BD + self.corners_C1D) * self.strides_BD).sum(-1)
        times_B = (weight_CB * self.times[at_CB]).sum(0)
        return (times_B * given[self.blocks_B]).sum()

    def at(self, sizes: Sequence[float] | Floats) -> float:
        """The same as a number."""
        given = torch.as_tensor(np.asarray(sizes, dtype=np.float64), device=self.one.device)
        return float(self(given))
