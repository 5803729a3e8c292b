"""Attention rewritten so that the first dims of every head carry most: the same function, ready to be cut."""

from vitprune.rotate.rotate import Rotated, RotateError, ordered, rotate

__all__ = ["RotateError", "Rotated", "ordered", "rotate"]
