"""Marks at module boundaries: which tensor of the trace is which argument of which module.

While a model is captured, every composite module's tensor arguments and results pass through an identity operator
that carries the number of the call. So the operators of one module can be told from the rest, and its forward can be
written anew with the same signature.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

MARK = "vitprune_mark"


@torch.library.custom_op("vitprune::vitprune_mark", mutates_args=())
def vitprune_mark(x: torch.Tensor, call: int, leaf: int) -> torch.Tensor:
    """x itself (a copy, as operators may not return their inputs)."""
    return x.clone()


@vitprune_mark.register_fake
def _(x: torch.Tensor, call: int, leaf: int) -> torch.Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Stands for the i-th tensor of a call's arguments or results."""

    number: int


@dataclass(slots=True)
class Call:
    """One call of one module: its arguments and result, tensors replaced by leaves."""

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: int  # tensors among the arguments; leaves from `inputs` on are results
    result: Any = None


@dataclass(slots=True)
class Calls:
    """All marked calls of one capture, numbered as the marks are."""

    calls: list[Call] = field(default_factory=list)
    open: list[int] = field(default_factory=list)  # calls that have not returned: after an error, where it came from

    def of(self, path: str) -> list[int]:
        """Numbers of the calls of one module."""
        return [i for i, c in enumerate(self.calls) if c.path == path]


def composite(module: nn.Module) -> bool:
    """Whether a module may hold literals of its own: not one of torch's elementary layers or containers."""
    home = type(module).__module__
    if home.startswith("torch.nn.modules"):
        return home == "torch.nn.modules.activation" and isinstance(module, nn.MultiheadAttention)
    return True


@contextmanager
def marked(model: nn.Module) -> Iterator[Calls]:
    """Marks every composite module of `model` but the root while the context is open."""
    calls = Calls()
    handles = []

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            number = len(calls.calls)
            count = 0

            def mark(value: Any) -> Any:
                nonlocal count
                if not isinstance(value, torch.Tensor):
                    return value
                count += 1
                return vitprune_mark(value, number, count - 1)

            marked_args, marked_kwargs = tree_map(mark, (args, kwargs))
            leaves, counter = _leaves((args, kwargs), 0)
            calls.calls.append(Call(path, leaves[0], leaves[1], counter))
            calls.open.append(number)
            return marked_args, marked_kwargs

        return hook

    def leave(module: nn.Module, args: Any, result: Any) -> Any:
        number = calls.open.pop()
        call = calls.calls[number]
        count = call.inputs

        def mark(value: Any) -> Any:
            nonlocal count
            if not isinstance(value, torch.Tensor):
                return value
            count += 1
            return vitprune_mark(value, number, count - 1)

        call.result, _ = _leaves(result, call.inputs)
        return tree_map(mark, result)

    for path, module in model.named_modules():
        if path and composite(module) and _holds_literals(module):
            handles.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _holds_literals(module: nn.Module) -> bool:
    """A module with children, or a leaf that keeps whole numbers above 1 (a shape, say) or a rate between 0 and 1.

    Anything else has no size to go stale, and no behaviour in training that a trace in eval mode does not show.
    """
    if any(True for _ in module.children()):
        return True
    values: list[Any] = []
    for name, value in vars(module).items():
        if not name.startswith("_") and not isinstance(value, bool) and name != "normalized_shape":
            values += value if isinstance(value, (tuple, list)) else [value]
    return any((isinstance(v, int) and v > 1) or (isinstance(v, float) and 0 < v < 1) for v in values)


def _leaves(tree: Any, start: int) -> tuple[Any, int]:
    count = start

    def replace(value: Any) -> Any:
        nonlocal count
        if isinstance(value, torch.Tensor):
            count += 1
            return Leaf(count - 1)
        return value

    return tree_map(replace, tree), count
