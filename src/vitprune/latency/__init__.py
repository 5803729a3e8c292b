"""Plans for a latency that is measured: table, exact solver, and bisection on the device."""

from vitprune.latency.allocate import Timing, allocate_latency
from vitprune.latency.cache import cache_folder

__all__ = ["Timing", "allocate_latency", "cache_folder"]
