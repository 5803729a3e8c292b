"""Building a module without spending time on random weights that will be overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# In-place draws, and the functions of torch.nn.init that consist of them.
RANDOM = frozenset(
    getattr(Tensor, name)
    for name in ("normal_", "uniform_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_", "random_")
)
AFTER = frozenset((Tensor.erfinv_,))  # what truncated normals do to their uniform draws
INIT = frozenset(
    getattr(nn.init, name)
    for name in (
        *("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "xavier_normal_"),
        *("kaiming_uniform_", "kaiming_normal_", "orthogonal_"),
    )
)


class _NoDraws(TorchFunctionMode):
    """Random draws into parameters become zeros; everything else, buffers among it, is computed as ever."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter):
            if func in RANDOM or func in INIT:
                with torch.no_grad():
                    return Tensor.zero_(target)
            if func in AFTER:
                return target
        return func(*args, **kwargs)


@contextmanager
def no_random_init() -> Iterator[None]:
    """Modules built inside have zeros where random weights would be; buffers and constant weights are right.

    The state of the random generators is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]), _NoDraws():
        yield


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Modules built inside have random weights that depend on `seed` alone; the generators are as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
