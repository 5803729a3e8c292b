"""What all processes of a run do at the same point, outside of training: wait, tell, and compare what each has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from vitprune.errors import VitpruneError
from vitprune.processes import is_main, world

T = TypeVar("T")


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


def told(make: Callable[[], T], device: str) -> T:
    """What `make` gives in the main process, in all of them; the others only wait. It must be one that pickle knows.

    Raises in all processes what it raises in the main one; what is no VitpruneError, as one, in the others.
    """
    if world() == 1:
        return make()
    import torch.distributed

    _state(device)
    found: list[Any] = [None, None]
    wrong: Exception | None = None
    if is_main():
        try:
            found[0] = make()
        except Exception as error:
            wrong = error
            known = isinstance(error, VitpruneError)
            found[1] = error if known else VitpruneError(f"process 0 failed: {type(error).__name__}: {error}")
    torch.distributed.broadcast_object_list(found, src=0)
    if wrong is not None:
        raise wrong
    if found[1] is not None:
        raise found[1]
    value: T = found[0]
    return value


def _state(device: str) -> Any:
    from accelerate.state import PartialState

    return PartialState(cpu=device == "cpu")
