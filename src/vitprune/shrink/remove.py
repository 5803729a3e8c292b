"""What stands in the place of a removed residual branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from vitprune.shrink.keep import Keep
from vitprune.trace.marks import Leaf


class Removed(nn.Module):
    """A module of a removed branch: gives zeros (the last one) or hands on its input; nothing to train."""

    def __init__(self, zero: bool, result: Any = None) -> None:
        super().__init__()
        self.zero = zero
        self.result = result  # structure of the module's result, tensors replaced by leaves; None: one tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the input's shape, or the input."""
        x = next(a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor))
        out = torch.zeros_like(x) if self.zero else x
        if self.result is None:
            return out
        return tree_map(lambda v: out if isinstance(v, Leaf) else v, self.result)

    def extra_repr(self) -> str:
        """What it gives."""
        return "zeros" if self.zero else "its input"


def remove_branches_(small: nn.Module, keep: Keep) -> set[str]:
    """Replace the modules of every branch that the plan takes out; returns their paths."""
    gone: set[str] = set()
    calls = keep.graph.detail.captured.calls
    for group in keep.removed_blocks:
        for path in group.modules:
            numbers = calls.of(path)
            result = calls.calls[numbers[0]].result if numbers else None
            small.set_submodule(path, Removed(path == group.modules[-1], None if isinstance(result, Leaf) else result))
            gone.add(path)
    return gone
