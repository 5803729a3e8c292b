"""The model in another basis, in which the first units of every rotated group carry most: ready to be cut."""

from vitprune.rotate.arrange import Arranged, arrange
from vitprune.rotate.rotate import KINDS, Rotated, RotateError, basis_settings, ordered, rotate

__all__ = ["KINDS", "Arranged", "RotateError", "Rotated", "arrange", "basis_settings", "ordered", "rotate"]
