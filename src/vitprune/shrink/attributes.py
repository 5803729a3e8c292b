"""Attributes that hold a size, corrected on the module that used them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vitprune.shrink.literals import Literal


def size_map(changes: Iterable[Literal]) -> dict[int, int]:
    """Old size -> new size, as far as all changed literals agree; sizes that also stay as they are fall out."""
    found: dict[int, set[int]] = {}
    for change in changes:
        old, new = change.old, change.new
        pairs = zip(old, new, strict=False) if isinstance(old, list) and isinstance(new, list) else [(old, new)]
        for a, b in pairs:
            if isinstance(a, int) and isinstance(b, int) and a > 0 and b > 0:
                found.setdefault(a, set()).add(b)
    return {a: next(iter(b)) for a, b in found.items() if len(b) == 1 and a not in b}


def patch_(module: nn.Module, sizes: dict[int, int]) -> dict[str, Any]:
    """Set whole-number attributes (and tuples of them) from old to new sizes; returns the old values."""
    old: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int) and value in sizes:
            old[name] = value
        elif isinstance(value, (tuple, list)) and value and all(type(v) is int for v in value):
            old |= {name: value} if any(v in sizes for v in value) and name == "normalized_shape" else {}
    for name, value in old.items():
        new = sizes[value] if isinstance(value, int) else type(value)(sizes.get(v, v) for v in value)
        setattr(module, name, new)
    return old


def restore_(module: nn.Module, old: dict[str, Any]) -> None:
    """Undo `patch_`."""
    for name, value in old.items():
        setattr(module, name, value)
