"""Which of the processes that a launcher started this one is (torchrun's and accelerate's variables); no torch."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number, from 0."""
    return _number("RANK", 0)


def world() -> int:
    """Number of processes."""
    return max(1, _number("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0 or world() == 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
