"""Sizes as expressions: what pruning fixed is a number, what comes from the input is read off it."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.shrink.keep import Keep
from vitprune.trace.moves import refined, view_blocks
from vitprune.trace.value import Value


def view_sizes(keep: Keep, expression: str, source: Value, out: Value) -> str:
    """The sizes of a reshape of `expression` (traced as `source`) into `out`, batch and tokens dynamic."""
    sizes = [s or 0 for s in keep.shape(out)]
    items = [str(s) for s in sizes]
    for a, b in view_blocks(source.shape, out.shape):
        factors = refined(source.shape, out.shape, a, b)
        owners = _owners(source.shape, a, factors)
        if owners is None:
            continue
        at = 0
        for o in b:
            product, mine = 1, []
            while product < out.shape[o]:
                product *= factors[at]
                mine.append(at)
                at += 1
            if product != out.shape[o]:
                break
            items[o] = _dimension(keep, expression, source, factors, owners, mine, sizes[o])
    return "[" + ", ".join(items) + "]"


def _owners(shape: Sequence[int], dims: Sequence[int], factors: Sequence[int]) -> list[tuple[int, int]] | None:
    """For every factor the old dim that it is a part of, and the product of the later factors of that dim."""
    out: list[tuple[int, int]] = []
    at = 0
    for d in dims:
        product, mine = 1, []
        while product < shape[d] and at < len(factors):
            product *= factors[at]
            mine.append(factors[at])
            at += 1
        if product != shape[d]:
            return None
        for k in range(len(mine)):
            later = 1
            for n in mine[k + 1 :]:
                later *= n
            out.append((d, later if k == 0 else -later))
    return out


def _dimension(
    keep: Keep, expression: str, source: Value, factors: Sequence[int], owners: Sequence[tuple[int, int]],
    mine: Sequence[int], size: int,
) -> str:
    dynamic: list[str] = []
    fixed = size
    for k in mine:
        d, later = owners[k]
        if source.on(d) or later < 0:  # labelled, or an inner part of a dim: its size is a number
            continue
        fixed //= factors[k]
        dynamic.append(f"{expression}.size({d})" + (f" // {later}" if later > 1 else ""))
    if not dynamic:
        return str(size)
    return " * ".join([f"({d})" if "//" in d else d for d in dynamic] + ([str(fixed)] if fixed != 1 else []))


def _anchored(size: int, dim: int, anchor: str, shape: Sequence[int]) -> str:
    if dim < len(shape) and shape[dim] == size and size > 1 and dim < 2:
        return f"{anchor}.size({dim})"
    return str(size)


def expand_sizes(keep: Keep, source: Value, out: Value, anchor: str, shape: Sequence[int]) -> str:
    """The sizes of an expand: -1 where nothing is repeated, else read off the module's first tensor argument."""
    lead = len(out.shape) - len(source.shape)
    items = []
    for d, n in enumerate(out.shape):
        if d >= lead and source.shape[d - lead] == n:
            items.append("-1")
        else:
            size = keep.size(out, d)
            items.append(_anchored(n, d, anchor, shape) if size == n else str(size))
    return "[" + ", ".join(items) + "]"


def new_sizes(keep: Keep, out: Value, anchor: str, shape: Sequence[int]) -> str:
    """The sizes of a new tensor."""
    items = []
    for d, n in enumerate(out.shape):
        size = keep.size(out, d)
        items.append(_anchored(n, d, anchor, shape) if size == n else str(size))
    return "[" + ", ".join(items) + "]"
