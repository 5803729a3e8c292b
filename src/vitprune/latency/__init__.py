"""Plans for a latency that is measured: table, exact solver, and bisection on the device."""

from vitprune.latency.allocate import Timing, allocate_latency
from vitprune.latency.cache import cache_folder
from vitprune.latency.clock import Clock
from vitprune.latency.timed import Timed

__all__ = ["Clock", "Timed", "Timing", "allocate_latency", "cache_folder"]
