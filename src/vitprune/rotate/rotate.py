"""A copy of the model with every head's dims in the basis in which the fewest of them do."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Floats, Scores
from vitprune.calibrate import images_of
from vitprune.errors import ModelError, VitpruneError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating
from vitprune.rotate.factor import directions
from vitprune.rotate.moments import Sums, observe
from vitprune.rotate.paths import Path, Slices, find_path
from vitprune.trace.graph import Graph

TOLERANCE = 1e-4  # of the outputs' size, between the rotated and the given model on the first batch, in float32


class RotateError(VitpruneError):
    """A rotation that cannot be done."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotated:
    """The same function in another basis."""

    model: nn.Module
    energy: Mapping[str, Floats]  # group name -> (lanes, size), falling: error of the product without each dim
    left: Mapping[str, str]  # q/k and v groups that were left as they were -> reason
    difference: float  # largest difference of the outputs on the first batch, as a share of their root mean square
    example: Any = None  # an input of the model's own shape, where it is known


def rotate(model: nn.Module, graph: Graph, batches: Iterable[Any]) -> Rotated:
    """A copy of the model in which the leading q/k and v dims of every head carry most; its outputs are the same.

    A head uses q and k through their product alone, and v through the next layer alone: any invertible matrix may
    stand between. The one taken makes the error of dropping the last dims least (see `directions`), weighted by what
    flows through on the calibration images. Groups whose dims something else touches (rotary embedding, a norm, a
    relative position product) stay as they are, with the reason in `left`.

    batches: images (B, C, H, W), or (images, labels) pairs whose labels are not looked at.

    Raises RotateError without images, CalibrationError for activations that are not finite.
    """
    found = {g.name: find_path(graph, g) for g in graph.groups if g.kind in ("qk", "v")}
    paths = [p for p in found.values() if isinstance(p, Path)]
    left = {name: p for name, p in found.items() if isinstance(p, str)}
    given = list(batches) if isinstance(batches, Iterator) else batches
    first = next(iter(given), None)
    if first is None:
        raise RotateError("rotation needs at least one batch of images, but got none")
    result = copy.deepcopy(model)
    try:
        sums = observe(result, paths, given)
    except ModelError as error:
        raise RotateError(f"the model cannot be run operator by operator ({error}); leave rotation out") from error
    usable = []
    tensors = dict(result.named_parameters(remove_duplicate=False)) | dict(result.named_buffers(remove_duplicate=False))
    for path in paths:
        name = path.group.name
        if (name, "right") not in sums or (path.group.kind == "qk" and (name, "left") not in sums):
            left[name] = "its layers are no linear layers"
        else:
            usable.append(path)
    energy: dict[str, Floats] = {p.group.name: _turn(p, sums, tensors) for p in usable}
    difference = _difference(model, result, first)
    if not difference <= TOLERANCE:  # a use of the dims that the walk does not know: one group at a time, then
        result.load_state_dict(model.state_dict())
        energy, difference = {}, 0.0
        for path in usable:
            before = copy.deepcopy(result.state_dict())
            values = _turn(path, sums, tensors)
            now = _difference(model, result, first)
            if now <= TOLERANCE:
                energy[path.group.name], difference = values, now
            else:
                result.load_state_dict(before)
                left[path.group.name] = f"its dims are used in another way, too: the outputs would change by {now:.0e}"
    return Rotated(result, energy, left, difference)


def ordered(scores: Scores, rotated: Rotated) -> Scores:
    """The scores with every rotated lane in falling order, as the rotation put its best dims first."""
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


def _difference(model: nn.Module, result: nn.Module, batch: Any) -> float:
    images = images_of(batch, next(model.parameters()).device)
    with torch.no_grad(), evaluating(model, result):
        want, got = logits(model(images)).double(), logits(result(images)).double()
    scale = want.square().mean().sqrt().clamp_min(1e-12)
    return float((got - want).abs().max() / scale)
