"""A copy of the model in the basis in which the fewest dims do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Floats, Scores
from vitprune.errors import ModelError, VitpruneError
from vitprune.rotate.factor import directions
from vitprune.rotate.moments import Sums, observe, stream_moment
from vitprune.rotate.paths import Path, Slices, find_path
from vitprune.rotate.residual import basis, fold, fold_problem, turn
from vitprune.rotate.stream import Stream, find_stream
from vitprune.rotate.work import Work
from vitprune.trace.graph import Graph, Group

KINDS = ("qk", "v", "residual")


class RotateError(VitpruneError):
    """A rotation that cannot be done."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotated:
    """The same function in another basis."""

    model: nn.Module
    energy: Mapping[str, Floats]  # group name -> (lanes, size), falling: error of the product without each dim
    left: Mapping[str, str]  # q/k and v groups that were left as they were -> reason
    difference: float  # largest difference of the outputs on the first images, as a share of their root mean square
    example: Any = None  # an input of the model's own shape, where it is known


def basis_settings(rotated: Rotated | None) -> dict[str, Any]:
    """What a plan says of its model's basis: the groups that were rotated, and those left as they were with reasons."""
    if rotated is None:
        return {"rotated": [], "not_rotated": {}}
    return {"rotated": sorted(rotated.energy), "not_rotated": dict(rotated.left)}


def rotate(model: nn.Module, graph: Graph, batches: Iterable[Any], kinds: Collection[str] = KINDS) -> Rotated:
    """A copy of the model in which the leading units of every rotated group carry most; its outputs are the same.

    A head uses q and k through their product alone, and v through the next layer alone: any invertible matrix may
    stand between. The one taken makes the error of dropping the last dims least (see `directions`), weighted by what
    flows through on the calibration images. The residual stream is turned to its principal components, as its norms
    permit (see `basis`). Groups whose units something else touches (rotary embedding, a norm on queries, a relative
    position product; a pooling over channels, batch norm) stay as they are, with the reason in `left`.

    batches: images (B, C, H, W), or (images, labels) pairs whose labels are not looked at. kinds: of "qk", "v" and
    "residual", those that are to be rotated.

    Raises RotateError without images, CalibrationError for activations that are not finite.
    """
    given = list(batches) if isinstance(batches, Iterator) else batches
    first = next(iter(given), None)
    if first is None:
        raise RotateError("rotation needs at least one batch of images, but got none")
    work = Work(model, first)
    ways = {g.name: _find(graph, g, work.tensors) for g in graph.groups if g.kind in kinds and g.kind in KINDS}
    left = {name: way for name, way in ways.items() if isinstance(way, str)}
    paths = [way for way in ways.values() if isinstance(way, Path)]
    streams = [way for way in ways.values() if isinstance(way, Stream)]
    streams = [s for s in streams if work.apply(s.group.name, partial(fold, s, work.tensors), left)]
    try:
        sums = observe(work.model, paths, streams, given)
    except ModelError as error:
        raise RotateError(f"the model cannot be run operator by operator ({error}); leave rotation out") from error
    left |= {p.group.name: "its layers are no linear layers" for p in paths if not _seen(p, sums)}
    paths = [p for p in paths if _seen(p, sums)]
    energy: dict[str, Floats] = {}

    def heads(some: Sequence[Path]) -> None:
        energy.update({p.group.name: _turn(p, sums, work.tensors) for p in some})

    if not work.apply("heads", partial(heads, paths), {}):  # a use of the dims that the search does not know
        energy.clear()
        for path in paths:  # one group at a time, then
            if not work.apply(path.group.name, partial(heads, [path]), left):
                del energy[path.group.name]
    for stream in streams:
        name = stream.group.name
        q, carried = basis(stream_moment(sums, stream, work.tensors), stream.centred)
        if work.apply(name, partial(turn, stream, q, work.tensors), left):
            energy[name] = carried.cpu().numpy()[None]
    return Rotated(work.model, energy, left, work.difference)


def _find(graph: Graph, group: Group, tensors: Mapping[str, Tensor]) -> Path | Stream | str:
    if group.kind != "residual":
        return find_path(graph, group)
    found = find_stream(graph, group)
    return found if isinstance(found, str) else fold_problem(found, tensors) or found


def _seen(path: Path, sums: Sums) -> bool:
    name = path.group.name
    return (name, "right") in sums and (path.group.kind == "v" or (name, "left") in sums)


def ordered(scores: Scores, rotated: Rotated | None) -> Scores:
    """The scores with every rotated lane in falling order, as the rotation put its best dims first.

    rotated: what the scored model is the module of; None: of nothing, the scores stay as they are.
    """
    if rotated is None:
        return scores
    return {
        name: np.sort(values, axis=1)[:, ::-1].copy() if name in rotated.energy else values
        for name, values in scores.items()
    }


def _turn(path: Path, sums: Sums, tensors: Mapping[str, Tensor]) -> Floats:
    """Change the basis of one group in place; returns the energy of its new dims."""
    name = path.group.name
    with torch.no_grad():
        if path.group.kind == "qk":
            a, b, energy = directions(sums[name, "left"].moment(False), sums[name, "right"].moment(True))
            for side, matrix in ((path.left, a), (path.right, b)):
                for at in (*side.weights, *side.biases):
                    _apply(tensors[at.tensor], at, matrix)
        else:
            (reader, *more) = path.right.weights
            gram = sum(_gram(tensors[at.tensor], at) for at in (reader, *more))
            assert isinstance(gram, Tensor)
            a, b, energy = directions(gram, sums[name, "right"].moment(True))
            for at in path.right.weights:
                _apply(tensors[at.tensor], at, a)
            for at in (*path.left.weights, *path.left.biases):
                _apply(tensors[at.tensor], at, b)
    found: Floats = energy.cpu().numpy()
    return found


def _pick(tensor: Tensor, at: Slices, column: int) -> tuple[Tensor, Tensor]:
    """(flat index, float64 slices (lanes, size, ...)) of one column of positions."""
    index = torch.as_tensor(np.ascontiguousarray(at.index[:, :, column]), device=tensor.device)
    moved = tensor.detach().movedim(at.dim, 0)
    return index, moved[index.flatten()].double().view(*index.shape, -1)


def _gram(tensor: Tensor, at: Slices) -> Tensor:
    """Sum over the outputs of w w^T for the weights w that read each lane: (lanes, size, size)."""
    total: Any = 0
    for column in range(at.index.shape[2]):
        _, rows = _pick(tensor, at, column)
        total = total + rows @ rows.mT
    assert isinstance(total, Tensor)
    return total


def _apply(tensor: Tensor, at: Slices, matrix: Tensor) -> None:
    """New slice i of a lane: the sum over d of matrix[d, i] x slice d."""
    moved = tensor.detach().movedim(at.dim, 0)
    for column in range(at.index.shape[2]):
        index, rows = _pick(tensor, at, column)
        turned = torch.einsum("ldr,ldx->lrx", matrix, rows)
        moved[index.flatten()] = turned.reshape(-1, *moved.shape[1:]).to(tensor.dtype)
