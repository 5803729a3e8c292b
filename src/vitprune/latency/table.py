"""What every branch's time is at which sizes of its groups: measured on a grid, interpolated in between.

Times are shares of the dense model's, which takes turns with the others, so that a slow hour does not bend the table:
medians of every branch, divided by the sum of the dense model's medians (on a busy machine hardly a whole forward pass
is free of interruptions, but most of its branches are).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from vitprune.allocate.ranking import Cluster
from vitprune.arrays import Floats, Ints
from vitprune.errors import TargetError
from vitprune.latency.branches import Axis, Branch, Structure
from vitprune.latency.clock import Clock
from vitprune.progress import Progress

# Points per axis, by the number of the branch's own axes: attention is nearly linear in each of heads, q/k and v dims.
POINTS = {0: 1, 1: 9, 2: 5, 3: 3}
POINTS_SHARED = {0: 1, 1: 6, 2: 4, 3: 3}  # where every one of them is measured at several shared sizes too
SHARED = 4
TURNS = (4, 400)
ROOM = 3 * 2**30  # bytes of grid models that are held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The measured choices: per branch and axis (the shared one last) positions in the axis' sizes, ascending."""

    points: tuple[tuple[Ints, ...], ...]

    def shape(self, branch: int) -> tuple[int, ...]:
        """Number of points along each axis of a branch."""
        return tuple(len(p) for p in self.points[branch])


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Times of all branches, as shares of the dense model's time."""

    structure: Structure
    grid: Grid
    values: tuple[Floats, ...]  # per branch, in the grid's shape
    dense_ms: float  # median of the whole batch, when the table was measured

    def times(self, branch: int) -> Floats:
        """The branch's time at every combination of its axes' choices (the shared axis last): multilinear."""
        axes = self.structure.axes(self.structure.branches[branch])
        values, points = self.values[branch], self.grid.points[branch]
        wide = [i for i, p in enumerate(points) if len(p) > 1]
        full = tuple(len(a.sizes) for a in axes)
        if not wide:
            return np.broadcast_to(values, full).copy()
        known = [self.knots(branch, i) for i in wide]
        wanted = np.stack(np.meshgrid(*(_coordinate(axes[i]) for i in wide), indexing="ij"), axis=-1)
        squeezed = values.reshape([len(points[i]) for i in wide])
        found: Floats = RegularGridInterpolator(known, squeezed)(wanted).reshape(full)
        return found

    def knots(self, branch: int, axis: int) -> Floats:
        """Where along an axis of the branch (the shared one last) was measured, ascending; see `_coordinate`."""
        along = self.structure.axes(self.structure.branches[branch])[axis]
        return _coordinate(along)[self.grid.points[branch][axis]]


def make_grid(structure: Structure) -> Grid:
    """Points spread evenly over the permitted sizes of every axis, both ends among them."""
    counts = POINTS if structure.shared is None else POINTS_SHARED

    def spread(axis: Axis, count: int) -> Ints:
        return np.unique(np.linspace(0, len(axis.sizes) - 1, count).round().astype(np.int64))

    points = []
    for branch in structure.branches:
        own = tuple(spread(a, counts[len(branch.axes)]) for a in branch.axes)
        points.append(own if structure.shared is None else (*own, spread(structure.shared, SHARED)))
    return Grid(tuple(points))


def measure_table(
    structure: Structure,
    clusters: Sequence[Cluster],
    dense: nn.Module,
    build: Callable[[Ints], nn.Module],
    clock: Clock,
    progress: Progress,
    seconds: float = 30.0,
) -> Table:
    """The table, from whole models at the points of the grid.

    build: the model that has these sizes, one per cluster. seconds: of measuring, roughly. One model has all branches
    at one of their points, so there are as many models as the branch with most points needs. They take turns with the
    dense model, as many at a time as fit into memory. Branches of the same shapes are averaged.

    Raises TargetError when a branch is never called as a module, so that it cannot be timed.
    """
    grid = make_grid(structure)
    rounds = _rounds(structure, grid)
    regions = [b.modules for b in structure.branches]
    one = clock.parts([dense], regions, 1)[0, 0]
    for branch, ms in zip(structure.branches, one, strict=True):
        if branch.axes and not ms > 0:
            raise TargetError(
                f"latency of {', '.join(branch.modules) or 'the model'} cannot be measured, as it is not called as a "
                "module; keep its groups out with protect"
            )
    turns = int(np.clip(seconds / (one.sum() / 1000 * (1 + 0.7 * len(rounds))), *TURNS))
    size = sum(p.numel() * p.element_size() for p in dense.parameters())
    batch = max(1, min(len(rounds), int(ROOM // max(size, 1))))
    progress.start("measuring the latency table", len(rounds))
    found = np.zeros((len(rounds), len(structure.branches)))
    dense_ms: list[float] = []
    for first in range(0, len(rounds), batch):
        part = rounds[first : first + batch]
        models = [build(_sizes(structure, clusters, choice)) for choice in part]
        times = clock.parts([dense, *models], regions, turns)
        typical = np.median(times, axis=0)
        dense_ms += times[:, 0].sum(axis=1).tolist()
        found[first : first + len(part)] = typical[1:] / typical[0].sum()
        progress.advance(len(part))
    progress.done()
    values = _averaged(structure, dense, grid, rounds, found)
    return Table(structure, grid, values, float(np.median(dense_ms)))


Choice = tuple[tuple[int, ...], ...]  # per branch, per axis the position in the axis' sizes


def _rounds(structure: Structure, grid: Grid) -> list[Choice]:
    own = [list(product(*(p.tolist() for p in points[: len(b.axes)])))
           for b, points in zip(structure.branches, grid.points, strict=True)]  # fmt: skip
    shared: list[tuple[int, ...]] = [()]
    if structure.shared is not None:
        shared = [(i,) for i in grid.points[0][-1].tolist()]
    return [tuple(o[i % len(o)] + s for o in own) for s in shared for i in range(max(len(o) for o in own))]


def _sizes(structure: Structure, clusters: Sequence[Cluster], choice: Choice) -> Ints:
    sizes = np.array([c.sizes[-1] for c in clusters], dtype=np.int64)
    for branch, positions in zip(structure.branches, choice, strict=True):
        for axis, position in zip(structure.axes(branch), positions, strict=True):
            sizes[list(axis.clusters)] = axis.sizes[position]
    return sizes


def _averaged(
    structure: Structure, dense: nn.Module, grid: Grid, rounds: Sequence[Choice], found: Floats
) -> tuple[Floats, ...]:
    alike: dict[object, list[int]] = {}
    for number, branch in enumerate(structure.branches):
        alike.setdefault(_looks(structure, branch, dense) if number else (), []).append(number)
    values: dict[int, Floats] = {}
    for members in alike.values():
        shape = grid.shape(members[0])
        total, count = np.zeros(shape), np.zeros(shape)
        for number in members:
            for choice, row in zip(rounds, found, strict=True):
                at = tuple(int(np.searchsorted(p, c)) for p, c in zip(grid.points[number], choice[number], strict=True))
                total[at] += row[number]
                count[at] += 1
        for number in members:
            values[number] = total / count
    return tuple(values[i] for i in range(len(structure.branches)))


def _looks(structure: Structure, branch: Branch, dense: nn.Module) -> object:
    """Equal for branches of the same parameters and choices."""
    shapes = [
        (name, tuple(p.shape)) for path in branch.modules for name, p in dense.get_submodule(path).named_parameters()
    ]
    return tuple(shapes), tuple(a.sizes.tobytes() for a in branch.axes)


def _coordinate(axis: Axis) -> Floats:
    """(choices,) where the sizes stand along the axis: the mean of the clusters' shares of their dense sizes."""
    place: Floats = (axis.sizes / axis.sizes[-1]).mean(axis=1)
    return place
