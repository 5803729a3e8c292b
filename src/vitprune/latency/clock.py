"""Milliseconds of models and of their branches, all models taking turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Floats
from vitprune.errors import VitpruneError
from vitprune.evaluate.latency import timed, using_threads
from vitprune.latency.branches import Region
from vitprune.modes import evaluating


class Clock(Protocol):
    """What times models; tests put one in its place that counts instead."""

    def parts(self, models: Sequence[nn.Module], regions: Sequence[Region], turns: int) -> Floats:
        """(turns, models, regions) ms of each region's modules without those of other regions inside them.

        The first region has everything that is in no other.
        """

    def whole(self, models: Sequence[nn.Module], turns: int) -> Floats:
        """(turns, models) ms of a forward pass."""


@dataclass(frozen=True, slots=True, eq=False)
class WallClock:
    """Times on the device that the arguments lie on: by the wall clock on the CPU, by device events on CUDA."""

    args: tuple[Any, ...]  # of one forward pass, at the batch that counts
    threads: int | None = None  # of the CPU; None: as set
    warmup: int = 2  # turns that do not count
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)

    def parts(self, models: Sequence[nn.Module], regions: Sequence[Region], turns: int) -> Floats:
        """See `Clock`; the hooks that take the times are gone afterwards."""
        out = np.zeros((self.warmup + turns, len(models), len(regions)))
        with self._ready(models):
            for turn in range(self.warmup + turns):
                for number in self._order(len(models)):
                    out[turn, number] = self._split(models[number], regions)
        return out[self.warmup :]

    def whole(self, models: Sequence[nn.Module], turns: int) -> Floats:
        """See `Clock`."""
        out = np.zeros((self.warmup + turns, len(models)))
        with self._ready(models):
            for turn in range(self.warmup + turns):
                for number in self._order(len(models)):
                    out[turn, number] = timed(models[number], *self.args)
        return out[self.warmup :]

    def _order(self, count: int) -> list[int]:
        """A new order each turn: in a fixed one the slices of a busy machine's scheduler would favour one model."""
        order: list[int] = self._random.permutation(count).tolist()
        return order

    @contextmanager
    def _ready(self, models: Sequence[nn.Module]) -> Iterator[None]:
        with using_threads(self.threads), evaluating(*models), torch.no_grad():
            yield

    def _split(self, model: nn.Module, regions: Sequence[Region]) -> Floats:
        """(regions,) ms of one forward pass: between two boundaries time belongs to the innermost open region."""
        stamp, elapsed = _stamps(self.args[0].device)
        marks: list[tuple[Any, int]] = []
        inside = [0]

        def enter(region: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any) -> None:
                marks.append((stamp(), inside[-1]))
                inside.append(region)

            return hook

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            marks.append((stamp(), inside.pop()))

        handles: list[Any] = []
        try:
            for number, region in enumerate(regions):
                for path in region:
                    module = model.get_submodule(path)
                    handles.append(module.register_forward_pre_hook(enter(number)))
                    handles.append(module.register_forward_hook(leave))
            began = stamp()
            model(*self.args)
            marks.append((stamp(), 0))
        finally:
            for handle in handles:
                handle.remove()
        out = np.zeros(len(regions))
        for (mark, region_number), before in zip(marks, [began, *(m for m, _ in marks)], strict=False):
            out[region_number] += elapsed(before, mark)
        return out


def _stamps(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """What marks a moment on the device, and the ms between two of them."""
    if device.type != "cuda":
        return time.perf_counter, lambda a, b: 1000 * (b - a)

    def event() -> Any:
        kind: Any = torch.cuda.Event
        made = kind(enable_timing=True)
        made.record()
        return made

    def between(a: Any, b: Any) -> float:
        b.synchronize()
        return float(a.elapsed_time(b))

    return event, between


def at_batch(args: Sequence[Any], batch: int) -> tuple[Any, ...]:
    """The arguments with `batch` images: the first entry of every tensor, repeated.

    Raises VitpruneError when the first argument is no tensor with a batch axis.
    """
    if not args or not isinstance(args[0], Tensor) or args[0].ndim < 1:
        raise VitpruneError(
            "latency targets need a model whose first argument is a tensor with the batch as first axis"
        )
    size = args[0].shape[0]

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == size:
            return value[:1].expand(batch, *value.shape[1:]).contiguous()
        return value

    return tuple(repeated(a) for a in args)
