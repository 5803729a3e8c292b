"""From scores and a budget to a plan: how many units of each group stay, and which."""

from vitprune.allocate.allocate import DEFAULT_KINDS, SCOPES, Scope, allocate
from vitprune.allocate.target import Target

__all__ = ["DEFAULT_KINDS", "SCOPES", "Scope", "Target", "allocate"]
