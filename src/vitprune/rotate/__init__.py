"""The model in another basis, in which the first units of every rotated group carry most: ready to be cut."""

from vitprune.rotate.rotate import KINDS, Rotated, RotateError, basis_settings, ordered, rotate

__all__ = ["KINDS", "RotateError", "Rotated", "basis_settings", "ordered", "rotate"]
