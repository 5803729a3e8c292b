"""From scores and a budget to a plan: how many units of each group stay, and which."""

from vitprune.allocate.allocate import DEFAULT_KINDS, DEFAULT_SCOPE, SCOPES, Scope, allocate
from vitprune.allocate.target import Target

__all__ = ["DEFAULT_KINDS", "DEFAULT_SCOPE", "SCOPES", "Scope", "Target", "allocate"]
