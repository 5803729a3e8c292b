"""A plan carried out: parameters cut, forwards put right, the result checked."""

from vitprune.shrink.apply import shrink
from vitprune.shrink.keep import Keep, keep_from
from vitprune.shrink.oracle import difference, masked

__all__ = ["Keep", "difference", "keep_from", "masked", "shrink"]
