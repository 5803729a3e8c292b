"""Sizes as expressions: what pruning fixed is a number, what comes from the input is read off a tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitprune.shrink.keep import Keep
from vitprune.trace.moves import refined, view_blocks
from vitprune.trace.value import Value


class NeedsGrowth(Exception):
    """A number that may stand for the batch: only a capture at another batch can tell."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one axis: as code, after pruning; and what the code gives when run on the dense model."""

    code: str
    dense: int  # at the traced batch
    grown: int | None = None  # with one image more; None where that is not known


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the sizes of a tensor can be made of.

    anchors: the axes of the module's tensor arguments. batches: of the trace's inputs. A number that may stand for a
    batch and of which the value with one image more is not known raises NeedsGrowth, unless all that can be known is.
    """

    anchors: tuple[Size, ...]
    batches: tuple[int, ...]
    certain: bool = False

    def suspect(self, dense: int) -> bool:
        """Whether a size may stand for a batch."""
        return not self.certain and dense > 1 and any(dense % n == 0 for n in self.batches)

    def settle(self, size: int, dense: int, grown: int | None, structural: Size | None, labelled: bool) -> str:
        """Code for the size of one axis.

        size: after pruning; dense, grown: before, at the two batches. structural: the code that the trace suggests.
        """
        if grown is None:
            if not labelled and structural is None and self.suspect(dense):
                raise NeedsGrowth
            return structural.code if structural is not None else str(size)
        if structural is not None and structural.grown == grown:
            return structural.code
        if dense == grown:
            return str(size)
        for anchor in self.anchors:
            more = anchor.grown
            if more is not None and more != anchor.dense and anchor.dense * grown == more * dense:
                return scaled(anchor.code, size, anchor.dense)
        return str(size)


def scaled(code: str, numerator: int, denominator: int) -> str:
    """Code for `code` * numerator / denominator."""
    common = math.gcd(numerator, denominator)
    up, down = numerator // common, denominator // common
    text = code if up == 1 else f"{code} * {up}"
    return text if down == 1 else f"{text} // {down}"


def view_sizes(
    keep: Keep,
    sizes: Sizes,
    expression: str,
    source: Value,
    out: Value,
    grown: tuple[Sequence[int], Sequence[int]] | None,
) -> str:
    """The sizes of a reshape of `expression` (traced as `source`) into `out`, batch and tokens dynamic.

    grown: the dense shapes of source and out with one image more.
    """
    kept = [s or 0 for s in keep.shape(out)]
    found: dict[int, Size] = {}
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
            size = _dimension(keep, expression, source, factors, owners, mine, kept[o], grown[0] if grown else None)
            if size is not None:
                found[o] = size
    items = [
        sizes.settle(kept[d], n, grown[1][d] if grown else None, found.get(d), bool(out.on(d)))
        for d, n in enumerate(out.shape)
    ]
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
    keep: Keep,
    expression: str,
    source: Value,
    factors: Sequence[int],
    owners: Sequence[tuple[int, int]],
    mine: Sequence[int],
    size: int,
    grown: Sequence[int] | None,
) -> Size | None:
    """The size made of the factors `mine`, None if none of them is read off the source."""
    dynamic: list[str] = []
    fixed, dense, more = size, 1, 1
    for k in mine:
        d, later = owners[k]
        dense *= factors[k]
        if later < 0 or (source.on(d) and (later > 1 or keep.mask(source, d) is not None)):
            # an inner part of a dim, a dim of which some goes, heads before their dims: a number
            more *= factors[k]
            continue
        fixed //= factors[k]
        more *= grown[d] // later if grown else 1
        dynamic.append(f"{expression}.size({d})" + (f" // {later}" if later > 1 else ""))
    if not dynamic:
        return None
    code = " * ".join([f"({d})" if "//" in d else d for d in dynamic] + ([str(fixed)] if fixed != 1 else []))
    return Size(code, dense, more if grown else None)


def expand_sizes(
    keep: Keep, sizes: Sizes, source: Value, out: Value, grown: tuple[Sequence[int], Sequence[int]] | None
) -> str:
    """The sizes of an expand: -1 where nothing is repeated."""
    lead = len(out.shape) - len(source.shape)
    items = []
    for d, n in enumerate(out.shape):
        if d >= lead and source.shape[d - lead] == n:
            items.append("-1")
        else:
            items.append(_anchored(keep, sizes, out, d, grown[1][d] if grown else None))
    return "[" + ", ".join(items) + "]"


def new_sizes(keep: Keep, sizes: Sizes, out: Value, grown: Sequence[int] | None) -> str:
    """The sizes of a new tensor."""
    items = [_anchored(keep, sizes, out, d, grown[d] if grown else None) for d in range(len(out.shape))]
    return "[" + ", ".join(items) + "]"


def _anchored(keep: Keep, sizes: Sizes, out: Value, dim: int, grown: int | None) -> str:
    """A size read off the same axis of an argument, if it is the same there."""
    dense, size = out.shape[dim], keep.size(out, dim) or 0
    structural = None
    if dim < 2 and dense > 1 and not out.on(dim) and (grown is not None or not sizes.suspect(dense)):
        structural = next((a for a in sizes.anchors if a.code.endswith(f".size({dim})") and a.dense == dense), None)
    return sizes.settle(size, dense, grown, structural, bool(out.on(dim)))
