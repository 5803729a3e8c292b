"""What all processes of a run do at the same point, outside of training: wait, and compare what each has."""

from __future__ import annotations

from typing import Any

from vitprune.processes import world


def wait(device: str) -> None:
    """Returns when every process has come here. `device`: as for `fit`."""
    if world() > 1:
        _state(device).wait_for_everyone()


def gathered(value: Any, device: str) -> list[Any]:
    """The value that each process gives, in their order; it must be one that pickle knows."""
    if world() == 1:
        return [value]
    import torch.distributed

    _state(device)  # chooses this process's own GPU
    found: list[Any] = [None] * world()
    torch.distributed.all_gather_object(found, value)
    return found


def _state(device: str) -> Any:
    from accelerate.state import PartialState

    return PartialState(cpu=device == "cpu")
