"""Backward elimination: units go one by one, each time the one whose loss the others make up for best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitprune.arrays import Floats
from vitprune.score.readers import Reader

BLOCK = 64  # columns whose updates are held back and then applied in one product of matrices


def eliminate(readers: Sequence[Reader]) -> Floats:
    """(lanes, size): the growth of the summed squared error as a unit goes; never less than that of one gone before.

    After unit u is gone, H^-1 loses its rank-one part h_u h_u^T / h_uu and the weights become W - w_u h_u^T / h_uu:
    the least squares solution without it. In every round each lane loses one unit. Columns of all lanes of a layer make
    up for each other. The last unit of a lane gets the growth that its removal would cause.
    """
    lanes, size, _ = readers[0].columns.shape
    device = readers[0].weight.device
    states = [_Columns(r) if r.columns.shape[2] == 1 else _Blocks(r) for r in readers]
    values = torch.zeros(lanes, size, dtype=torch.float64, device=device)
    gone = torch.zeros(lanes, size, dtype=torch.bool, device=device)
    least = torch.zeros(lanes, dtype=torch.float64, device=device)
    for _ in range(size):
        for lane in range(lanes):
            cost = states[0].costs(lane)
            for state in states[1:]:
                cost = cost + state.costs(lane)
            cost = cost.masked_fill(gone[lane], torch.inf)
            unit = int(cost.argmin())
            least[lane] = values[lane, unit] = torch.maximum(least[lane], cost[unit])
            gone[lane, unit] = True
            for state in states:
                state.remove(lane, unit)
    found: Floats = values.cpu().numpy()
    return found


class _Columns:
    """A reader with one column per unit; removals are applied `BLOCK` at a time.

    With the held back columns P (n, b) and Q (outputs, b), the present matrices are H^-1 - P P^T and W - Q P^T.
    """

    def __init__(self, reader: Reader) -> None:
        self.inverse, self.weight = reader.inverse.clone(), reader.weight.clone()
        self.columns = reader.columns[:, :, 0]
        self.p = self.inverse.new_zeros(len(self.inverse), 0)
        self.q = self.inverse.new_zeros(len(self.weight), 0)
        self._measure()

    def _measure(self) -> None:
        self.diagonal = self.inverse.diagonal().clone()
        self.norms = self.weight.square().sum(0)

    def costs(self, lane: int) -> Tensor:
        """(size,) growth of the error without each unit of the lane."""
        j = self.columns[lane]
        return self.norms[j].clamp_min(0) / self.diagonal[j].clamp_min(1e-300)

    def remove(self, lane: int, unit: int) -> None:
        """The state without one unit."""
        j = int(self.columns[lane, unit])
        h = self.inverse[j] - self.p @ self.p[j]
        w = self.weight[:, j] - self.q @ self.p[j]
        inner = self.weight.T @ w - self.p @ (self.q.T @ w)
        pivot = h[j].clamp_min(1e-300)
        step = h / pivot
        self.norms = self.norms - 2 * inner * step + inner[j] * step.square()
        self.diagonal = self.diagonal - h * step
        root = pivot.sqrt()
        self.p = torch.cat([self.p, (h / root).unsqueeze(1)], 1)
        self.q = torch.cat([self.q, (w / root).unsqueeze(1)], 1)
        if self.p.shape[1] == BLOCK:
            self.inverse.addmm_(self.p, self.p.T, alpha=-1)
            self.weight.addmm_(self.q, self.p.T, alpha=-1)
            self.p, self.q = self.p[:, :0], self.q[:, :0]
            self._measure()


class _Blocks:
    """A reader with several columns per unit (a head's dims): few units, each removed at once."""

    def __init__(self, reader: Reader) -> None:
        self.reader = Reader(reader.weight.clone(), reader.inverse.clone(), reader.columns)
        self.left = torch.ones(reader.columns.shape[:2], dtype=torch.bool)

    def costs(self, lane: int) -> Tensor:
        """(size,) growth of the error without each unit of the lane; infinite for those that are gone."""
        units = self.reader.columns[lane][self.left[lane]].unsqueeze(0)
        found = torch.full((self.left.shape[1],), torch.inf, dtype=torch.float64, device=self.reader.weight.device)
        found[self.left[lane]] = Reader(self.reader.weight, self.reader.inverse, units).costs()[0]
        return found

    def remove(self, lane: int, unit: int) -> None:
        """The state without one unit."""
        r, u = self.reader, self.reader.columns[lane, unit]
        h = r.inverse[:, u]
        step = torch.linalg.solve(h[u], h.T)  # (k, n)
        r.weight -= r.weight[:, u] @ step
        r.inverse -= h @ step
        self.left[lane, unit] = False
