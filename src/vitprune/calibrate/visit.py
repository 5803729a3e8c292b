"""What every linear layer reads and gives on calibration images, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.calibrate.finite import check_finite
from vitprune.calibrate.images import images_of
from vitprune.calibrate.replay import Replay
from vitprune.calibrate.sites import Site, sites
from vitprune.modes import evaluating

See = Callable[[Site, Tensor, Tensor], None]


def visit(
    model: nn.Module,
    batches: Iterable[Any],
    see: See,
    weights: Collection[str] | None = None,
    *,
    parts: bool = False,
) -> int:
    """The number of images run; `see` is called with every linear layer, in the order in which they run.

    see(site, x, y): what the layer reads (B, ..., in) and gives (B, ..., out), channels last. weights: the names of
    those weights alone whose layers are of interest; None for all. parts: as for `sites`. The model is in eval mode
    meanwhile, without gradients.

    Raises ModelError when the model cannot be captured at a batch's size, CalibrationError for activations that are NaN
    or infinite, with the layer's name.
    """
    device = next(model.parameters()).device
    replays: dict[int, tuple[Replay, list[Site]]] = {}
    count = 0
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            images = images_of(batch, device)
            count += len(images)
            if len(images) not in replays:
                replay = Replay(model, images)
                every = [
                    s for name, same in sites(replay.captured, parts=parts).items() for s in same if _in(name, weights)
                ]
                replays[len(images)] = (replay, _in_order(replay, every))
            replay, order = replays[len(images)]
            env, at = replay.start(images), 0
            for site in order:
                replay.advance(env, at, at := replay.at[site.node])
                x = replay.given(env, site.node, 0).movedim(site.channel_dim, -1)
                check_finite(site, x)
                replay.advance(env, at, at := at + 1)
                if site.node in env:
                    see(site, x, env[site.node].movedim(site.channel_dim, -1))
    return count


def _in_order(replay: Replay, found: list[Site]) -> list[Site]:
    return sorted(found, key=lambda site: replay.at[site.node])


def _in(name: str, weights: Collection[str] | None) -> bool:
    return weights is None or name in weights
