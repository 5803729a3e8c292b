"""What other stages may do inside a training step (masks, gates, counters)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class StepHook(Protocol):
    """Called by `fit` around every optimizer step; `step` counts from 0 over the whole run."""

    def before_forward(self, step: int) -> None:
        """Before the forward pass of the step; before each of them where gradients of several are accumulated."""

    def after_backward(self, step: int) -> None:
        """When all gradients of the step are there, before they are clipped and applied."""

    def after_step(self, step: int) -> None:
        """When the optimizer has changed the weights, before they are averaged."""


@runtime_checkable
class LossHook(Protocol):
    """A hook that adds a term to the loss."""

    def extra_loss(self, step: int) -> Tensor:
        """A scalar that is added to the loss of every forward pass."""


@runtime_checkable
class StatefulHook(Protocol):
    """A hook with state of its own, saved and restored with every checkpoint."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold the state."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the state."""


@runtime_checkable
class ParameterHook(Protocol):
    """A hook with parameters of its own, trained beside the model's and kept in the optimizer's checkpoints.

    Where there are several processes, the gradients of these are averaged twice: before `after_backward`, which may
    make more of them from the model's gradients, and after it, so that no rounding lets the processes part.
    """

    def extra_parameters(self) -> Mapping[str, tuple[Sequence[nn.Parameter], float, float]]:
        """Group name -> (parameters, learning rate, the same at every step, weight decay)."""


@runtime_checkable
class CostHook(Protocol):
    """A hook under which the model's cost falls; `TrainSettings.patience` waits for it."""

    def standing(self, step: int) -> tuple[float, bool]:
        """After an epoch whose last step was `step`: the cost (1 at the beginning), and whether it is low enough."""
