"""Names for groups, from the paths of the tensors that they hold. No name has a meaning to the engine."""

from __future__ import annotations

from collections.abc import Sequence


def common_module(tensors: Sequence[str]) -> str:
    """The longest module path that all tensor names share ('' for the root)."""
    paths = [name.split(".")[:-1] for name in tensors]
    if not paths:
        return ""
    out = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        out.append(parts[0])
    return ".".join(out)


def block_key(path: str) -> str | None:
    """The path up to its last number, which names a repeated block; None without one."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else None


def rank_blocks(keys: Sequence[str | None]) -> dict[str, int]:
    """Blocks numbered in the order of their first appearance."""
    out: dict[str, int] = {}
    for key in keys:
        if key is not None and key not in out:
            out[key] = len(out)
    return out
