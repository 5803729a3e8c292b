"""From importances to the units that stay: as many in every lane, permitted sizes only."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.masks.layout import Layout


class Selector:
    """The layout's structure as tensors on one device; everything here runs without waiting for it."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.lane = torch.as_tensor(layout.lane, device=device)
        self.start = torch.as_tensor(layout.lane_start, device=device)
        self.cluster = torch.as_tensor(layout.lane_cluster, device=device)
        self.permitted = torch.as_tensor(layout.permitted, device=device)
        self.smallest = torch.as_tensor(layout.smallest, device=device)
        self.lanes = torch.bincount(self.cluster, minlength=len(self.smallest))

    def counts(self, over: Tensor) -> Tensor:
        """(clusters,): units per lane that stay when those in `over` (units,) want to: the mean over lanes, upwards."""
        wanted = torch.zeros_like(self.lanes).index_add_(0, self.cluster[self.lane], over.to(self.lanes.dtype))
        mean = (wanted + self.lanes - 1) // self.lanes
        return self.permitted.gather(1, mean[:, None])[:, 0]

    def top(self, theta: Tensor, counts: Tensor) -> Tensor:
        """(units,) of 0 and 1: per lane the most important ones, as many as the cluster's count."""
        theta = theta.detach()
        order = torch.argsort(theta, descending=True, stable=True)
        order = order[torch.argsort(self.lane[order], stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - self.start[self.lane[order]]
        return (rank < counts[self.cluster[self.lane]]).to(theta.dtype)

    def shares(self, share: float, sizes: Tensor) -> Tensor:
        """(clusters,): the permitted counts nearest above a share of the dense sizes (clusters,)."""
        wanted = torch.ceil(sizes * share).long()
        return self.permitted.gather(1, wanted[:, None])[:, 0]
