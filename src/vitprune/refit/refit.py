"""Every linear layer behind a cut, fitted to the dense model's outputs, in the order in which they run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.calibrate import Moments, Replay, Sensitivity, Site, check_finite, images_of, sensitivities, sites
from vitprune.calibrate.sites import CONVOLUTIONS
from vitprune.errors import ModelError, VitpruneError, listed
from vitprune.modes import evaluating
from vitprune.plan import Plan
from vitprune.progress import Progress, Silent
from vitprune.refit.joined import Joined, joined
from vitprune.refit.ridge import best_ridge
from vitprune.refit.spool import LIMIT, Spool
from vitprune.shrink.keep import Keep, keep_from
from vitprune.trace.capture import op_name
from vitprune.trace.graph import Graph

ENOUGH = 10  # samples per input, below which a user is told
CHECKED = 40  # samples per input, below which the damping is chosen by letting one half predict the other
TINY = 1e-12  # layer scale below which a channel is left alone
FELT = 28  # images that say how much each position counts


class RefitError(VitpruneError):
    """A refit that cannot be done."""


@dataclass(frozen=True, slots=True)
class Refitted:
    """One layer: mean squared difference to its target per position, as weighted, before and after."""

    weight: str
    before: float
    after: float
    samples: int  # positions of tokens, over all images
    inputs: int
    idle: int  # inputs that never vary on the images: what their weights add stays as it was
    cut: bool  # whether it lost inputs

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Pair:
    """Dense and small model for one batch size, and how far they ran."""

    dense: Replay
    small: Replay
    dense_at: int = 0
    small_at: int = 0


def refit(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    plan: Plan,
    batches: Iterable[Any],
    *,
    progress: Progress | None = None,
    memory: int = LIMIT,
    felt: Mapping[str, Sensitivity] | None = None,
    notes: list[str] | None = None,
) -> tuple[Refitted, ...]:
    """Change the weights and biases of `small` in place so that its layers give what those of `model` give.

    A layer is a linear operator (or a pointwise convolution) with a weight of its own that runs after the first cut:
    those that lost inputs, and those whose inputs are no longer the dense model's. They are taken in the order in which
    they run; each is regressed, by least squares in float64, on the inputs that the small model really gives it by
    then, its target being the dense layer's output on the same images; for a layer whose output is added to a residual
    stream, the dense sum minus the small model's other summand, so that it also makes up for what the layers before
    left (unless whole branches are gone, whose work the others do badly). Positions count by what an error there does
    to the model's output (`Sensitivity.weights`). The old weights are the anchor (see `Moments.solve`). No labels are
    needed and nothing is trained.

    model, graph, plan: as they were given to `shrink`. batches: images (B, C, H, W), or (images, labels); they are
    run once, `memory` bytes of intermediate results are held, the rest lies in a temporary folder. felt: how the output
    feels each layer of `model`, where that is known; None: it is found from the first `FELT` images.

    Source: OSSCAR (Meng et al., arXiv 2403.12983), section 3, with covariance shrinkage; CORP gives the same from the
    dense inputs alone.

    Too few images for a layer's width, and inputs that never vary, are damped and said through `progress`; so are
    layers that lost inputs and cannot be fitted (see `remarks`). What is said is added to `notes`, too.

    Raises RefitError without images, and when the models cannot be captured at the batch's size; CalibrationError, with
    the layer's name, for activations that are NaN or infinite.
    """
    said = progress or Silent()
    keep, device = keep_from(graph, plan), next(small.parameters()).device
    pairs: dict[int, _Pair] = {}
    sizes: list[int] = []
    first: list[Tensor] = []
    count = 0
    with torch.no_grad(), evaluating(model, small), Spool(memory) as spool:
        for number, batch in enumerate(batches):
            images = images_of(batch, device)
            size = len(images)
            if size not in pairs:
                pairs[size] = _pair(model, small, images)
            spool.put(number, (pairs[size].dense.start(images), pairs[size].small.start(images)))
            if sum(map(len, first)) < FELT:
                first.append(images)
            sizes.append(size)
            count += len(batch if isinstance(batch, Tensor) else batch[0])
        if not sizes:
            raise RefitError("refit needs at least one batch of images, but got none")
        todo = _layers(keep, pairs)
        if felt is None:
            felt = sensitivities(model, first, images=FELT, draws=1) if todo else {}
        said.start("refitting", len(todo))
        found = []
        for target, site in todo:
            found.append(_layer(small, keep, pairs, sizes, spool, target, site, felt.get(site.weight)))
            said.advance()
        said.done(f"{len(found)} layers refitted on {count} images")
        told = remarks(found, count, _others(keep, next(iter(pairs.values())).small, found))
        for note in told:
            said.line(f"note: {note}")
    if notes is not None:
        notes.extend(told)
    return tuple(found)


def remarks(layers: Sequence[Refitted], images: int, others: Sequence[str] = ()) -> tuple[str, ...]:
    """What a user should know of the fit: too few images for a layer that lost inputs, inputs that never vary.

    others: weights that lost inputs and were not fitted.
    """
    notes: list[str] = []
    if others:
        notes.append(
            f"{listed(others)} lost inputs and kept their other weights: only linear layers and pointwise convolutions "
            "that run once are refitted"
        )
    tight = [layer for layer in layers if layer.cut and layer.samples < ENOUGH * layer.inputs]
    if tight:
        worst = min(tight, key=lambda layer: layer.samples / layer.inputs)
        wanted = math.ceil(ENOUGH * worst.inputs * images / worst.samples)
        notes.append(
            f"{images} images give {worst.samples:,} samples for the {worst.inputs:,} inputs of {worst.weight}, fewer "
            f"than {ENOUGH} for each; the fit is damped, {wanted:,} images or more would do better"
        )
    idle = [layer for layer in layers if layer.idle]
    if idle:
        worst = max(idle, key=lambda layer: layer.idle / layer.inputs)
        notes.append(
            f"{worst.idle} of {worst.inputs} inputs of {worst.weight} never vary on the images (and some of "
            f"{len(idle) - 1} other layers): the covariance is singular, and damped"
        )
    return tuple(notes)


def _pair(model: nn.Module, small: nn.Module, images: Tensor) -> _Pair:
    try:
        return _Pair(Replay(model, images), Replay(small, images))
    except ModelError as error:
        raise RefitError(f"the models cannot be run operator by operator ({error}); leave refit out") from error


def _layers(keep: Keep, pairs: dict[int, _Pair]) -> list[tuple[Site, Site]]:
    """(dense, small) operators of every weight that is read once, in the small model's order, from the first cut on."""
    pair = next(iter(pairs.values()))
    before, after = sites(pair.dense.captured), sites(pair.small.captured)
    both = [
        (before[name][0], found[0])
        for name, found in after.items()
        if len(found) == 1 and len(before.get(name, ())) == 1
    ]
    both.sort(key=lambda two: pair.small.at[two[1].node])
    if keep.removed_blocks:  # where the first branch went does not show in the weights that are left
        return both
    for number, (_, site) in enumerate(both):
        lost = [part is not None for part in keep.tensor(site.weight)]
        if any(lost):
            return both[number:] if lost[1] else both[number + 1 :]
    return []


def _others(keep: Keep, small: Replay, found: Sequence[Refitted]) -> list[str]:
    """Weights of linear layers and convolutions that lost inputs and are not among those fitted."""
    captured, fitted = small.captured, {layer.weight for layer in found}
    names: dict[str, None] = {}
    for node in captured.nodes:
        if op_name(node) == "linear" or op_name(node) in CONVOLUTIONS:
            name = captured.tensors.get(getattr(node.args[1], "name", ""), "")
            lost = keep.tensor(name)[1:2] if name in captured.parameters else ()
            if name not in fitted and any(part is not None for part in lost):
                names[name] = None
    return list(names)


def _layer(
    small: nn.Module,
    keep: Keep,
    pairs: dict[int, _Pair],
    sizes: list[int],
    spool: Spool,
    target: Site,
    site: Site,
    felt: Sensitivity | None,
) -> Refitted:
    weight = small.get_parameter(site.weight)
    bias = None if site.bias is None else small.get_parameter(site.bias)
    rows, columns = keep.tensor(site.weight)[:2]
    cut = columns is not None
    outputs = None if rows is None else torch.as_tensor(rows, device=weight.device)
    width, height = weight.shape[1], weight.shape[0]
    halves = (Moments(width, height, weight.device), Moments(width, height, weight.device))
    whole = not keep.removed_blocks  # what a branch added that is gone is not for the others to add
    joins = {size: _joins(pair, target, site) if whole else None for size, pair in pairs.items()}
    scale = _scale(small, joins)
    for number, size in enumerate(sizes):
        pair = pairs[size]
        dense, mine = spool.take(number)
        pair.dense.advance(dense, pair.dense_at, pair.dense.at[target.node] + 1)
        pair.small.advance(mine, pair.small_at, pair.small.at[site.node])
        wanted = dense[target.node].movedim(target.channel_dim, -1)
        wanted = wanted if outputs is None else wanted[..., outputs]
        x, offset = pair.small.given(mine, site.node, 0), pair.small.given(mine, site.node, 2)  # maybe a computed bias
        x = x.movedim(site.channel_dim, -1)
        check_finite(site, x)
        check_finite(target, wanted)
        got = torch.nn.functional.linear(x, weight.flatten(1), offset)
        residual = wanted - got if scale is None else (wanted - got) * scale
        if (join := joins[size]) is not None:
            was, now = dense[join[0].other].movedim(site.channel_dim, -1), mine[join[1].other]
            was = was if outputs is None else was[..., outputs]
            residual = residual + (was - now.movedim(site.channel_dim, -1))
        counts, half = None if felt is None else felt.weights(x), (len(x) + number % 2) // 2
        for moments, part in zip(halves, (slice(half), slice(half, None)), strict=True):  # by images: tokens are alike
            shares = None if counts is None else counts[part].flatten()
            moments.add(x[part].flatten(0, -2), residual[part].flatten(0, -2), shares)
        spool.put(number, (dense, mine))
    for pair in pairs.values():
        pair.dense_at, pair.small_at = pair.dense.at[target.node] + 1, pair.small.at[site.node]
    moments, ridge = halves[0] + halves[1], 0.0
    before = moments.rr / max(moments.count, 1)
    if moments.count < CHECKED * weight.shape[1]:
        found = best_ridge(halves, bias is not None)
        if found is None:
            return Refitted(site.weight, before, before, moments.count, width, moments.idle(), cut)
        ridge = found
    change, shift = moments.solve(bias is not None, ridge)
    after = moments.error(change, shift)
    if scale is not None:
        back = scale.double().reciprocal().masked_fill(scale.abs() < TINY, 0)
        change, shift = change * back.unsqueeze(1), shift * back
    weight.add_(change.view_as(weight).to(weight.dtype))
    if bias is not None:
        bias.add_(shift.to(bias.dtype))
    return Refitted(site.weight, before, after, moments.count, width, moments.idle(), cut)


def _joins(pair: _Pair, target: Site, site: Site) -> tuple[Joined, Joined] | None:
    """The sums that both models' outputs of the layer enter; None where either enters none."""
    dense, small = joined(pair.dense, target), joined(pair.small, site)
    return None if dense is None or small is None or (dense.scale is None) != (small.scale is None) else (dense, small)


def _scale(small: nn.Module, joins: Mapping[int, tuple[Joined, Joined] | None]) -> Tensor | None:
    """(outputs,) what the output is multiplied by before it is added; the same for all batch sizes."""
    names = {None if join is None else join[1].scale for join in joins.values()}
    (name,) = names if len(names) == 1 else (None,)
    return None if name is None else small.get_parameter(name).detach().flatten()
