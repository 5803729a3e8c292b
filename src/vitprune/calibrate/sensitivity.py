"""How far the model's output moves when what a linear layer gives does, by layer, position and channel.

The output z (class scores) moves by J dy when a layer's y moves by dy. With v standard normal, g = J^T v has
E[(g . dy)^2] = |J dy|^2, so squared gradients of v . z tell, without labels and without training, what an error of a
layer costs at the output.

Source: the Gauss-Newton matrix by Hutchinson's estimator (Martens, arXiv 1412.1193, sections 6 and 9), its diagonal in
positions and channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.calibrate.images import images_of
from vitprune.calibrate.replay import Replay
from vitprune.calibrate.sites import Site, sites
from vitprune.models.loaded import logits
from vitprune.modes import evaluating

TOGETHER = 7  # images per pass: few, as all activations are held; a prime, as it tells the images' dim from others
IMAGES = 56
DRAWS = 2  # of v, for each image


@dataclass(slots=True)
class Sensitivity:
    """Means over images and draws, for one weight; float64."""

    channels: Tensor  # (rows of the weight,) sum over positions of g^2
    gates: Tensor  # (rows,) square of the sum over positions of g y: what the output moves by without the channel
    positions: Tensor | None  # (positions of an image,) sum over channels of g^2; None: layers of several calls
    image_dim: int  # dim of y that counts images, or images times windows: 0 or 1

    def weights(self, x: Tensor) -> Tensor | None:
        """Of the shape of x (..., channels) without its last dim, mean 1: how much each of its positions counts.

        x: what the layer reads or gives, for any number of images. A position counts by the root of what an error there
        does to the output, half way to equal shares: a fit that looks at few positions alone has few samples. None
        where positions cannot be told.
        """
        if self.positions is None or not float(self.positions.sum()) > 0:
            return None
        root = self.positions.sqrt()
        shape = x.shape[:-1]
        images, rest = divmod(shape.numel(), len(root))
        if rest:
            return None
        share = root / root.mean()
        return (share.repeat_interleave(images) if self.image_dim else share.repeat(images)).view(shape)


def by_image(y: Tensor, images: int, image_dim: int) -> Tensor:
    """(images, positions, channels) of what a layer gives, channels last."""
    return (y.movedim(1, 0) if image_dim else y).reshape(images, -1, y.shape[-1])


def sensitivities(
    model: nn.Module, batches: Iterable[Any], seed: int = 0, *, images: int = IMAGES, draws: int = DRAWS
) -> dict[str, Sensitivity]:
    """Name of a linear layer's weight -> how the output feels it, from the first `images` images of the batches.

    The model is in eval mode meanwhile; its parameters get no gradients. Empty where gradients cannot be had: the
    forward pass overwrites what they need, or the output does not depend on the images by them.

    Raises ModelError when the model cannot be captured, or its output holds no tensor.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Sensitivity] = {}
    count = 0
    with evaluating(model):
        replay: Replay | None = None
        for some in _portions(batches, images, device):
            if replay is None or replay.size != len(some):
                replay = Replay(model, some)
                by_weight = sites(replay.captured, parts=True)
            try:
                _one(replay, by_weight, some, draws, generator, found)
            except RuntimeError as error:
                if "gradient" not in str(error) and "grad_fn" not in str(error):
                    raise
                return {}
            count += len(some) * draws
    for of_layer in found.values():
        of_layer.channels /= count
        of_layer.gates /= count
        if of_layer.positions is not None:
            of_layer.positions /= count
    return found


def _portions(batches: Iterable[Any], images: int, device: torch.device) -> Iterable[Tensor]:
    """`TOGETHER` images at a time; what is left over at the end only where there is nothing else."""
    held: list[Tensor] = []
    left, given = images, 0
    for batch in batches:
        if left <= 0:
            break
        held.append(images_of(batch, device)[:left])
        left -= len(held[-1])
        together = torch.cat(held)
        whole = len(together) // TOGETHER * TOGETHER
        yield from torch.split(together[:whole], TOGETHER) if whole else ()
        given += whole
        held = [together[whole:]]
    if held and len(held[0]) and not given:
        yield held[0]


def _one(
    replay: Replay,
    by_weight: dict[str, list[Site]],
    images: Tensor,
    draws: int,
    generator: torch.Generator,
    found: dict[str, Sensitivity],
) -> None:
    """Adds the sums over one portion of images."""
    every = {s.node: s for same in by_weight.values() for s in same}
    kept: list[tuple[Site, Tensor]] = []
    with torch.enable_grad():
        env, at = replay.start(images.clone().requires_grad_(True)), 0
        for place in sorted(replay.at[node] for node in every):
            replay.advance(env, at, at := place + 1)
            node = replay.nodes[place].name
            if isinstance(y := env.get(node), Tensor) and y.requires_grad:
                kept.append((every[node], y))
                env[node] = y.clone()  # so that an operator that overwrites it does not change `y`
        outputs = replay.outputs(env, at)
        scores = logits(outputs)
        if not kept or not scores.requires_grad:
            return
        for draw in range(draws):
            v = torch.randn(scores.shape, generator=generator).to(scores)
            inner = (scores * v).sum()
            grads = torch.autograd.grad(inner, [y for _, y in kept], retain_graph=draw + 1 < draws, allow_unused=True)
            for (site, y), g in zip(kept, grads, strict=True):
                if g is not None:
                    _add(found, replay, site, y.detach(), g, len(images), single=len(by_weight[site.weight]) == 1)


def _add(
    found: dict[str, Sensitivity], replay: Replay, site: Site, y: Tensor, g: Tensor, images: int, *, single: bool
) -> None:
    y, g = y.movedim(site.channel_dim, -1), g.movedim(site.channel_dim, -1)
    dim = _image_dim(y, images)
    if dim is None:
        return
    y, g = by_image(y, images, dim).double(), by_image(g, images, dim).double()
    if site.weight not in found:
        rows = replay.tensors[site.weight].shape[0]
        zeros = torch.zeros(rows, dtype=torch.float64, device=y.device)
        positions = torch.zeros(y.shape[1], dtype=torch.float64, device=y.device) if single else None
        found[site.weight] = Sensitivity(zeros, zeros.clone(), positions, dim)
    sums, rows_ = found[site.weight], slice(site.start, site.start + y.shape[-1])
    sums.channels[rows_] += g.square().sum((0, 1))
    sums.gates[rows_] += (g * y).sum(1).square().sum(0)
    if sums.positions is not None:
        sums.positions += g.square().sum((0, 2))


def _image_dim(y: Tensor, images: int) -> int | None:
    """The dim of y (channels last) that counts images, or images times windows; None where it is neither of two."""
    if y.dim() > 2 and y.shape[0] != images and y.shape[1] == images:
        return 1
    return 0 if y.shape[0] % images == 0 else None
