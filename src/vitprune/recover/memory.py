"""Gradient checkpointing: activations that are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import nn

from vitprune.recover.settings import TrainError

FLAGS = ("grad_checkpointing", "gradient_checkpointing")  # of timm's modules, of transformers'
REMEDY = "train without it, with a smaller batch and accumulate"
REFUSALS = (AssertionError, AttributeError, NotImplementedError, TypeError, ValueError)


@contextmanager
def checkpointing(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Within it, `model` keeps less activations, by its own library's switch.

    timm: `set_grad_checkpointing`; transformers: `activation_checkpointing_enable`, or `gradient_checkpointing_enable`
    as it was called before, non-reentrant.

    Raises TrainError for a model that has neither, refuses, or whose forward was rewritten when it was pruned.
    """
    if not wanted:
        yield
        return
    on, off = _switches(model)
    try:
        try:
            on()
        except REFUSALS as error:
            name = type(model).__name__
            raise TrainError(f"{name} has no gradient checkpointing ({error}); {REMEDY}") from error
        _check_forwards(model)
        yield
    finally:
        with suppress(*REFUSALS):
            off()


def _switches(model: nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """On and off."""
    timm: Any = getattr(model, "set_grad_checkpointing", None)
    if timm is not None:
        return partial(timm, True), partial(timm, False)
    for word in ("activation", "gradient"):
        enable: Any = getattr(model, f"{word}_checkpointing_enable", None)
        disable: Any = getattr(model, f"{word}_checkpointing_disable", None)
        if enable is not None and disable is not None:
            return partial(enable, **{f"{word}_checkpointing_kwargs": {"use_reentrant": False}}), disable
    raise TrainError(
        "gradient checkpointing needs a model of timm or transformers that offers it, but "
        f"{type(model).__name__} has neither set_grad_checkpointing nor gradient_checkpointing_enable; {REMEDY}"
    )


def _check_forwards(model: nn.Module) -> None:
    """Raises TrainError where the switch was set on a module whose own code, which looks at it, no longer runs."""
    flagged = {name: m for name, m in model.named_modules() if any(getattr(m, f, False) is True for f in FLAGS)}
    own = {name for name, module in flagged.items() if "forward" not in vars(module)}
    for name in flagged.keys() - own:
        if not any(other != name and other.startswith(f"{name}." if name else "") for other in own):
            raise TrainError(
                f"gradient checkpointing would do nothing in {name or 'the model'}, whose forward was rewritten when "
                f"the model was pruned; {REMEDY}"
            )
