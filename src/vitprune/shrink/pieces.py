"""Parts of a fused axis that no longer have the same size: picked from the flat axis instead of a reshape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitprune.shrink.keep import Keep
from vitprune.shrink.signature import CannotEmit
from vitprune.trace.labels import Array, Labels
from vitprune.trace.moves import drop_dim, view, view_blocks
from vitprune.trace.value import Value


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A tensor that is not rectangular any more, as a pick from one axis of a tensor that is.

    `axes` lists this tensor's axes in order: ("base", i) is axis i of the base, ("part", j) axis j of `ids`, which
    holds the positions along the base's axis `dim` (-1: removed).
    """

    base: str
    rank: int
    dim: int
    ids: Array
    axes: tuple[tuple[str, int], ...]

    def shape(self, base_shape: Sequence[int]) -> tuple[int, ...]:
        """Dense shape."""
        return tuple(base_shape[i] if kind == "base" else self.ids.shape[i] for kind, i in self.axes)


def start(
    keep: Keep, expression: str, value: Value, shape: Sequence[int]
) -> tuple[Piece, Value | None, list[tuple[int, int]]]:
    """The piece that a view of a rectangular tensor to a ragged `shape` makes.

    Where the view also splits or joins other axes, the second result is the rectangular tensor that has those axes
    as in `shape` already: it must be made first, and the piece refers to it by `expression`. The third tells where
    each of its sizes comes from: (0, axis of the source) or (1, axis of the view).
    """
    axes: list[tuple[str, int]] = []
    middle: list[int] = []
    origin: list[tuple[int, int]] = []
    dim = -1
    sizes: list[int] = []
    for a, b in view_blocks(value.shape, shape):
        cut = [k for k in a if keep.mask(value, k) is not None]
        if len(a) == 1 and len(b) > 1 and cut:
            if dim >= 0:
                raise CannotEmit("a reshape that splits several axes of unequal parts")
            dim = len(middle)
            middle.append(value.shape[a[0]])
            origin.append((0, a[0]))
            axes += [("part", j) for j in range(len(b))]
            sizes = [shape[j] for j in b]
        elif len(b) == len(a) == 1 or not cut:
            for j in b:
                axes.append(("base", len(middle)))
                middle.append(shape[j])
                origin.append((1, j))
        else:
            raise CannotEmit("a reshape that mixes several axes of unequal parts")
    if dim < 0:
        raise CannotEmit("a reshape of unequal parts")
    rest = None if tuple(middle) == value.shape else view(Labels(), value, middle)
    flat = rest or value
    mask = keep.mask(flat, dim)
    line = np.ones(flat.shape[dim], dtype=bool) if mask is None else mask.reshape(-1)
    if len(line) != flat.shape[dim]:
        raise CannotEmit("parts that differ along another axis")
    ids = np.where(line, np.cumsum(line) - 1, -1).reshape(sizes)
    return Piece(expression, len(middle), dim, ids, tuple(axes)), rest, origin


def reshaped(piece: Piece, old: Sequence[int], new: Sequence[int]) -> Piece:
    """Parts split or joined; axes of the base stay."""
    axes: list[tuple[str, int]] = []
    order: list[int] = []
    sizes: list[int] = []
    for a, b in view_blocks(old, new):
        if len(a) == 1 and len(b) == 1:
            kind, i = piece.axes[a[0]]
            if kind == "base":
                axes.append((kind, i))
                continue
        if any(piece.axes[k][0] == "base" and old[k] > 1 for k in a):
            raise CannotEmit("a reshape of unequal parts together with other axes")
        order += [piece.axes[k][1] for k in a if piece.axes[k][0] == "part"]
        for j in b:
            axes.append(("part", len(sizes)))
            sizes.append(new[j])
    if len(order) != piece.ids.ndim:
        raise CannotEmit("a reshape of unequal parts")
    return replace(piece, ids=piece.ids.transpose(order).reshape(sizes), axes=tuple(axes))


def permuted(piece: Piece, order: Sequence[int]) -> Piece:
    """Axes reordered."""
    return replace(piece, axes=tuple(piece.axes[o] for o in order))


def picked(piece: Piece, axis: int, index: int) -> Piece:
    """One position of an axis."""
    kind, j = piece.axes[axis % len(piece.axes)]
    if kind != "part":
        raise CannotEmit("a pick along an axis of the base")
    axes = tuple((k, i - (k == "part" and i > j)) for k, i in piece.axes if (k, i) != ("part", j))
    return replace(piece, ids=np.asarray(piece.ids.take(index, axis=j)), axes=axes)


def sliced(piece: Piece, axis: int, where: slice) -> Piece:
    """A run of positions of an axis."""
    kind, j = piece.axes[axis % len(piece.axes)]
    if kind != "part":
        raise CannotEmit("a slice along an axis of the base")
    return replace(piece, ids=piece.ids[(slice(None),) * j + (where,)])


def materialise(piece: Piece, sizes: Sequence[int], constants: dict[str, object]) -> str:
    """Code for the piece as a tensor with the given part sizes.

    sizes: of the piece's axes in order, after pruning. Raises CannotEmit if the kept positions do not fill them.
    """
    part_sizes = [0] * piece.ids.ndim
    for (kind, i), n in zip(piece.axes, sizes, strict=True):
        if kind == "part":
            part_sizes[i] = n
    flat = piece.ids[piece.ids >= 0]
    if len(flat) != int(np.prod(part_sizes)):
        raise CannotEmit("kept positions that do not form a rectangle")
    d = piece.dim
    if len(flat) and np.array_equal(flat, np.arange(flat[0], flat[0] + len(flat))):
        pick = f"torch.ops.aten.slice.Tensor({piece.base}, {d}, {int(flat[0])}, {int(flat[-1]) + 1})"
    else:
        name = f"_index{len(constants)}"
        constants[name] = flat.tolist()
        pick = f"{piece.base}.index_select({d}, torch.tensor({name}, device={piece.base}.device))"
    shape: list[str] = []
    for i in range(piece.rank):
        shape += [str(n) for n in part_sizes] if i == d else [f"{piece.base}.size({i})"]
    where = {("base", i): i + (piece.ids.ndim - 1) * (i > d) for i in range(piece.rank) if i != d}
    where |= {("part", j): d + j for j in range(piece.ids.ndim)}
    order = [where[a] for a in piece.axes]
    return f"{pick}.reshape({', '.join(shape)}).permute({order})"


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A tensor whose slices along one axis are rectangular, but not alike (q, k and v of one linear)."""

    axis: int
    parts: tuple[str, ...]  # expressions of the slices
    values: tuple[Value, ...]  # what was traced for each


def slice_value(value: Value, axis: int, index: int) -> Value:
    """One position of an axis, without the axis."""
    return drop_dim(Labels(), value, axis, index)


def stackable(keep: Keep, piece: Piece, value: Value) -> int | None:
    """The axis along which all slices are rectangular, None if there is none."""
    for axis, (kind, _) in enumerate(piece.axes):
        if kind != "part":
            continue
        slices = [slice_value(value, axis, k) for k in range(value.shape[axis])]
        if all(None not in keep.shape(v) for v in slices):
            return axis
    return None


def stack_permuted(order: Sequence[int], axis: int) -> tuple[int, list[int]]:
    """Where a stack's axis goes, and the order of a slice's axes."""
    return list(order).index(axis), [o - (o > axis) for o in order if o != axis]


def stack_axis_after(axis: int, old: Sequence[int], new: Sequence[int]) -> int:
    """Where a reshape puts a stack's axis. Raises CannotEmit if it splits it or joins it to others."""
    for a, b in view_blocks(old, new):
        if axis in a:
            if len(a) == len(b) == 1:
                return b[0]
            break
    raise CannotEmit("a reshape of unequal parts together with other axes")
