"""After the cut: the layers that read pruned units, fitted again in closed form, without labels or training."""

from vitprune.refit.refit import RefitError, Refitted, refit

__all__ = ["RefitError", "Refitted", "refit"]
