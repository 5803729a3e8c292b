"""Second moments of what every head's layers give and read, over calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.calibrate import Site, visit
from vitprune.rotate.paths import Path, Slices
from vitprune.rotate.stream import Stream
from vitprune.trace.graph import IndexArray

Sums = dict[tuple[str, str], "Spread"]  # (group, "left" or "right") -> sums


@dataclass(slots=True)
class Spread:
    """Running sums over the dims of every lane."""

    first: Tensor  # (lanes, size) float64
    second: Tensor  # (lanes, size, size)
    count: int = 0

    def moment(self, central: bool) -> Tensor:
        """E[x x^T] per lane; central: of x minus its mean."""
        n = max(self.count, 1)
        mean = self.first / n
        found = self.second / n
        return found - mean.unsqueeze(-1) * mean.unsqueeze(-2) if central else found


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """Dims to be observed at one linear layer."""

    key: tuple[str, str]  # group, side
    at: Slices
    output: bool  # what the layer gives, else what it reads
    by_image: bool  # minus the mean over each image's tokens, which a softmax over them does not feel


def observe(model: nn.Module, paths: Sequence[Path], streams: Sequence[Stream], batches: Iterable[Any]) -> Sums:
    """The moments of queries and keys at their layers' outputs, of what v's reader reads, of what a stream's do."""
    wishes: dict[str, list[_Wish]] = {}
    for path in paths:
        name, queries = path.group.name, path.group.kind == "qk"
        found = [(s, "left", False) for s in path.left.weights] if queries else []
        found += [(s, "right", queries) for s in path.right.weights]
        for at, side, keys in found:
            wishes.setdefault(at.tensor, []).append(_Wish((name, side), at, queries, keys))
    for stream in streams:
        name = stream.group.name
        for member in stream.group.members:
            if member.tensor in stream.readers and member.dim == 1:
                at = Slices(member.tensor, 1, member.index)
                wishes.setdefault(member.tensor, []).append(_Wish((name, member.tensor), at, False, False))
    sums: Sums = {}

    def see(site: Site, x: Tensor, y: Tensor) -> None:
        for wish in wishes[site.weight]:
            at = wish.at.index - site.start if wish.output else wish.at.index
            if at.min() >= 0 and at.max() < (y if wish.output else x).shape[-1]:
                _add(sums, wish, at, y if wish.output else x)

    visit(model, batches, see, wishes.keys(), parts=True)
    return sums


def stream_moment(sums: Sums, stream: Stream) -> Tensor:
    """(size, size): the mean over a stream's readers of the covariance of what they read, each with trace 1."""
    found = [sums[key].moment(True)[0] for w in stream.readers if (key := (stream.group.name, w)) in sums]
    total = torch.stack([m / m.trace().clamp_min(1e-30) for m in found]).mean(0)
    return (total + total.T) / 2


def _add(sums: Sums, wish: _Wish, at: IndexArray, x: Tensor) -> None:
    lanes, size, columns = at.shape
    if wish.key not in sums:
        zeros = torch.zeros(lanes, size, dtype=torch.float64, device=x.device)
        sums[wish.key] = Spread(zeros, torch.zeros(lanes, size, size, dtype=torch.float64, device=x.device))
    held = sums[wish.key]
    for column in range(columns):
        index = torch.as_tensor(np.ascontiguousarray(at[:, :, column]), device=x.device)
        part = x.index_select(-1, index.flatten()).double()
        if wish.by_image and part.dim() > 2:
            part = part - part.mean(tuple(range(1, part.dim() - 1)), keepdim=True)
        flat = part.flatten(0, -2).view(-1, lanes, size)
        held.first += flat.sum(0)
        held.second += torch.einsum("nla,nlb->lab", flat, flat)
        held.count += len(flat)
