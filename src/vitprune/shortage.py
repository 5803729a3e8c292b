"""Memory that runs out, told as an error of the user: what was being done, and what would need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitprune.errors import VitpruneError

SIGNS = ("DefaultCPUAllocator", "out of memory")  # of torch's RuntimeErrors, on the CPU and on devices


class MemoryShortage(VitpruneError):
    """There is less memory than what was asked for needs."""

    exit_code = 12


def is_shortage(error: BaseException) -> bool:
    """Whether it says that memory ran out: Python's and numpy's MemoryError, or torch's of the CPU or a GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in SIGNS))


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Raises MemoryShortage, naming what was being done, when memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise MemoryShortage(f"memory ran out during {what} ({said}); {remedy}") from error
