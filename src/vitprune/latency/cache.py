"""Measured tables on disk, one file per model, device, threads, batch and grid."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitprune.arrays import Floats
from vitprune.errors import StoreError
from vitprune.files import write_text
from vitprune.latency.branches import Structure
from vitprune.latency.table import Grid, Table
from vitprune.trace.capture import op_name
from vitprune.trace.graph import Graph

Key = Mapping[str, Any]  # what the times depend on, as JSON values


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/vitprune/latency`, or the same under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitprune" / "latency"


def make_key(
    graph: Graph, args: tuple[Any, ...], threads: int, structure: Structure, grid: Grid, fixed: Mapping[str, int]
) -> Key:
    """What the times depend on: model, input, device, threads, torch, and the sizes that were measured.

    A model is known by its groups and operators: the same weights may run through fused attention or in steps. fixed:
    sizes of groups that are cut in all of the grid's models alike.
    """
    first: Tensor = args[0]
    operators = "" if graph.detail is None else " ".join(op_name(node) for node in graph.detail.captured.nodes)
    return {
        "model": graph.fingerprint,
        "operators": hashlib.sha256(operators.encode()).hexdigest()[:16],
        "inputs": [[*a.shape] for a in args if isinstance(a, Tensor)],
        "dtype": str(first.dtype).removeprefix("torch."),
        "device": device_name(first.device),
        "threads": threads,
        "torch": torch.__version__,
        "fixed": dict(fixed),
        "grid": [
            [list(b.modules), [a.sizes[p].tolist() for a, p in zip(structure.axes(b), points, strict=True)]]
            for b, points in zip(structure.branches, grid.points, strict=True)
        ],
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model name and number of cores."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine() or "CPU"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def read_table(folder: Path, key: Key, structure: Structure, grid: Grid) -> Table | None:
    """The stored table of that key; None when there is none, or none that can be trusted."""
    try:
        data = json.loads(_path(folder, key).read_text(encoding="utf-8"))
        if data["key"] != json.loads(json.dumps(key)):
            return None
        values: list[Floats] = [np.array(v, dtype=np.float64) for v in data["values"]]
        dense = float(data["dense_ms"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = len(values) == len(structure.branches) and np.isfinite(dense) and dense > 0
    for number, value in enumerate(values if sound else ()):
        sound &= value.shape == grid.shape(number) and bool(np.isfinite(value).all()) and bool((value >= 0).all())
    return Table(structure, grid, tuple(values), dense) if sound else None


def write_table(folder: Path, key: Key, table: Table) -> None:
    """Stores the table; a folder that cannot be written is no error, as the table can be measured again."""
    data = {"key": key, "dense_ms": table.dense_ms, "values": [v.tolist() for v in table.values]}
    with suppress(OSError, StoreError):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(_path(folder, key), json.dumps(data) + "\n")


def _path(folder: Path, key: Key) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder / f"{digest}.json"
