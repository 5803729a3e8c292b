"""Time of a forward pass: several models measured in turn in one process, so that they share the machine's moods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.errors import VitpruneError
from vitprune.modes import evaluating
from vitprune.progress import Progress, Silent


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """Wall-clock time of one model's forward pass at one batch size, in evaluation and inference mode."""

    name: str
    batch: int
    median_ms: float  # of the whole batch
    p10_ms: float
    p90_ms: float
    repeats: int
    threads: int  # of the CPU
    device: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def latency(
    models: Mapping[str, nn.Module | Callable[[Tensor], Any]],
    example: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int | None = None,
    warmup: int = 5,
    repeats: int = 30,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[LatencyRow, ...]:
    """One row per batch size and model, the models taking turns within every repeat, in every other one backwards.

    models: modules, or other callables that take the images and set their threads themselves, such as exported files.
    `example`: (B, C, H, W), of which the first image is repeated to each batch size. `threads`: CPU threads, else
    torch's number. On CUDA the time between two events on the device counts, on the CPU the wall clock.

    Raises VitpruneError for numbers below 1 or a missing device.
    """
    if repeats < 1 or warmup < 0 or any(b < 1 for b in batch_sizes) or (threads is not None and threads < 1):
        raise VitpruneError(
            f"latency needs positive numbers, but got {batch_sizes=}, {threads=}, {warmup=}, {repeats=}"
        )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VitpruneError(f"device {device!r} was asked for, but torch sees no CUDA device")
    shown, rows = progress or Silent(), []
    modules = [model for model in models.values() if isinstance(model, nn.Module)]
    for module in modules:
        module.to(device)
    with using_threads(threads) as used, evaluating(*modules), torch.no_grad():
        shown.start("timing", len(batch_sizes) * (warmup + repeats))
        for batch in batch_sizes:
            x = example[:1].to(device).expand(batch, *example.shape[1:]).contiguous()
            times: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(warmup + repeats):
                for name, model in list(models.items())[:: -1 if turn % 2 else 1]:
                    ms = timed(model, x)
                    if turn >= warmup:
                        times[name].append(ms)
                shown.advance()
            for name, measured in times.items():
                p10, median, p90 = (float(v) for v in np.percentile(measured, (10, 50, 90)))
                dtype = str(x.dtype).removeprefix("torch.")
                rows.append(LatencyRow(name, batch, median, p10, p90, repeats, used, device, dtype))
        shown.done()
    return tuple(rows)


def timed(model: nn.Module | Callable[..., Any], *args: Any) -> float:
    """Milliseconds of one forward pass on `args`, the first of them a tensor on the model's device."""
    place = args[0].device
    if place.type == "cuda":
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        model(*args)
        end.record()
        torch.cuda.synchronize(place)
        return float(begin.elapsed_time(end))
    began = time.perf_counter()
    model(*args)
    return 1000 * (time.perf_counter() - began)


@contextmanager
def using_threads(wanted: int | None) -> Iterator[int]:
    """So many CPU threads for a while (None: as set); gives their number."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
