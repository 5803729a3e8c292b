"""Saved folders: everything that a pruned model needs, readable, strict, and free of pickle."""

from vitprune.store.load import load
from vitprune.store.read import FILES, Contents, is_saved, read
from vitprune.store.save import save

__all__ = ["FILES", "Contents", "is_saved", "load", "read", "save"]
