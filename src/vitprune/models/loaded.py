"""A model ready for use, and the class scores in whatever it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitprune.errors import ModelError
from vitprune.models.source import ModelSource
from vitprune.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A module in evaluation mode and float32, where it came from, and what it wants of images."""

    model: nn.Module
    source: ModelSource  # rebuilds the same structure with `skeleton`: the class count is written into it
    preprocessing: Preprocessing
    num_classes: int  # 0: no classifier, the model returns features
    notes: tuple[str, ...] = ()  # what was re-initialised, converted or assumed


def logits(output: object) -> Tensor:
    """The class scores (B, K) in a model's output: `.logits`, or the first tensor of a dataclass, tuple or dict.

    Raises ModelError when the output holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(output, Mapping):
        if isinstance(output.get("logits"), Tensor):
            return logits(output["logits"])
        values = list(output.values())
    else:
        values = list(output) if isinstance(output, tuple | list) else []
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise ModelError(f"the model returns {type(output).__name__}, which holds no tensor of class scores")


def plain(model: nn.Module) -> nn.Module:
    """The model itself, where it is wrapped by `torch.compile`: its parameters have their own names there."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def example(preprocessing: Preprocessing, batch: int = 2, seed: int = 0) -> Tensor:
    """(batch, channels, height, width) float32, standard normal: an input of the model's own shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, preprocessing.channels, *preprocessing.size, generator=generator)
