"""A copy of a model that is changed step by step, each step checked by the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.calibrate import images_of
from vitprune.models.loaded import logits
from vitprune.modes import evaluating

TOLERANCE = 1e-4  # of the outputs' size, between the changed and the given model, in float32
CHECKED = 32  # images of the first batch that this is looked at on


class Work:
    """The copy that is changed step by step; a step that changes the outputs is undone."""

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.dense, self.difference = model, 0.0
        self.images = images_of(batch, next(model.parameters()).device)[:CHECKED]
        self.model = copy.deepcopy(model)
        self.tensors: dict[str, Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        self.tensors |= dict(self.model.named_buffers(remove_duplicate=False))

    @cached_property
    def wanted(self) -> Tensor:
        """What the dense model gives."""
        return _outputs(self.dense, self.images)

    def apply(self, name: str, change: Callable[[], None], left: dict[str, str]) -> bool:
        """Whether the outputs are the same after the change; if not, it is undone and the reason is put into `left`."""
        before = {key: tensor.detach().clone() for key, tensor in self.tensors.items()}
        change()
        scale = self.wanted.square().mean().sqrt().clamp_min(1e-12)
        found = float((_outputs(self.model, self.images) - self.wanted).abs().max() / scale)
        if found <= TOLERANCE:
            self.difference = found
            return True
        with torch.no_grad():
            for key, tensor in self.tensors.items():
                tensor.copy_(before[key])
        left[name] = f"its units are used in another way, too: the outputs would change by {found:.0e}"
        return False


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(model):
        return logits(model(images)).double()
