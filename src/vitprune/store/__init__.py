"""Saved folders: everything that a pruned model needs, readable, strict, and free of pickle."""

from vitprune.store.card import model_card
from vitprune.store.hub import PREFIX, local
from vitprune.store.hub_card import front_matter
from vitprune.store.load import load
from vitprune.store.read import FILES, Contents, is_saved, read
from vitprune.store.save import save

__all__ = ["FILES", "PREFIX", "Contents", "front_matter", "is_saved", "load", "local", "model_card", "read", "save"]
