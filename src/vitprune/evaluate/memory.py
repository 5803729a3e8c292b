"""Memory of a forward pass, and size on disk."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.errors import VitpruneError
from vitprune.modes import evaluating

MIB = 2**20
CPU_METHOD = "parameters and buffers, plus the peak of what torch's CPU allocator held during the forward pass"
CUDA_METHOD = "torch.cuda.max_memory_allocated during the forward pass, other tensors on the device taken off"


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Memory that one forward pass in inference mode needs."""

    mib: float  # weights and forward pass together, without the input
    weights_mib: float  # parameters and buffers alone
    batch: int
    device: str
    method: str  # what was counted

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def peak_memory(model: nn.Module, example: Tensor, device: str = "cpu") -> PeakMemory:
    """Peak memory in MiB of the model's forward pass on `example`, in evaluation mode.

    On the CPU the allocations that torch itself makes are counted, by its profiler; the scratch space of the
    matrix libraries and the interpreter are not. Raises VitpruneError for a missing device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise VitpruneError(f"device {device!r} was asked for, but torch sees no CUDA device")
    model.to(device)
    x = example.to(device)
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
    weights = sum(tensors.values())
    with torch.no_grad(), evaluating(model):
        model(x)  # what is made once, at the first call, does not count
        extra, method = (_cuda(model, x), CUDA_METHOD) if x.is_cuda else (_cpu(model, x), CPU_METHOD)
    return PeakMemory((weights + extra) / MIB, weights / MIB, len(x), device, method)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _cuda(model: nn.Module, x: Tensor) -> int:
    torch.cuda.synchronize(x.device)
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    model(x)
    torch.cuda.synchronize(x.device)
    return int(torch.cuda.max_memory_allocated(x.device)) - int(before)


def _cpu(model: nn.Module, x: Tensor) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library writes of missing GPUs, past Python's streams
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(x)
    del output
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def file_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. Raises VitpruneError when there is nothing."""
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise VitpruneError(f"no file or folder {path}")
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
