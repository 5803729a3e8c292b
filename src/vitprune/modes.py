"""Evaluation mode for a while, leaving every submodule's own mode as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode, without anything that they cached before; what they cache meanwhile is dropped too.

    Some models (LeViT, EfficientFormer) keep attention biases from their first call in eval mode on, and forget them
    when they are told to train: such a cache would outlive new weights, or hold the fake tensors of a trace.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.train().eval()
    try:
        yield
    finally:
        for model in models:
            model.train()
        for module, mode in modes:
            module.training = mode
