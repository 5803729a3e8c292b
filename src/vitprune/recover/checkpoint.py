"""Checkpoints of a training run: whole or absent, pickle-free, one folder each, of which the last stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitprune.recover.settings import TrainError

FORMAT = 2


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    state: Mapping[str, Any]  # JSON: format, settings, epochs done, steps done in the epoch after, ...
    tensors: Mapping[str, Mapping[str, Tensor]]  # "model", "average", "best", "optimizer", "hook" -> name -> tensor


def write(folder: Path, epoch: int, checkpoint: Checkpoint, steps: int | None = None) -> Path:
    """The checkpoint folder `epoch-NNNNN`, written under another name and renamed when whole; older ones go.

    steps: done in that epoch, which is not over: the folder is then `epoch-NNNNN-step-NNNNNNN`.

    Raises TrainError when it cannot be written (disk full); older checkpoints are then still there.
    """
    name = f"epoch-{epoch:05d}" if steps is None else f"epoch-{epoch:05d}-step-{steps:07d}"
    final, temporary = folder / name, folder / f".writing-{name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        for part, tensors in checkpoint.tensors.items():
            own = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}  # no shared storage
            save_file(own, temporary / f"{part}.safetensors")
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT} | dict(checkpoint.state), indent=1))
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainError(f"the checkpoint {final} could not be written: {error}") from error
    except BaseException:  # Ctrl-C: nothing half-written stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _folders(folder):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def read_last(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`, or None when there is none. Raises TrainError when it is damaged."""
    for path in reversed(_folders(folder)):
        try:
            state = json.loads((path / "state.json").read_text())
            tensors = {f.stem: load_file(f) for f in sorted(path.glob("*.safetensors"))}
        except (OSError, ValueError, SafetensorError) as error:
            raise TrainError(f"the checkpoint {path} is damaged ({error}); delete it to start over") from error
        if state.get("format") != FORMAT:
            raise TrainError(f"the checkpoint {path} has format {state.get('format')}, this version reads {FORMAT}")
        return Checkpoint(state, tensors)
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter state as named tensors: "<index>.<entry>"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(v) for i, entry in state.items() for key, v in entry.items()}


def unpack_optimizer_(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Restores what `pack_optimizer` gave; settings of the groups stay as they are."""
    full = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in packed.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})


def _folders(folder: Path) -> list[Path]:
    """The oldest first: an epoch's steps stand before its end."""
    found = (p for p in folder.glob("epoch-*") if p.is_dir())
    return sorted(found, key=lambda p: p.name if "-step-" in p.name else f"{p.name}-z")
