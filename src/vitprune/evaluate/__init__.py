"""Measurements: accuracy, latency, memory, size."""

from vitprune.evaluate.accuracy import Accuracy, accuracy
from vitprune.evaluate.latency import LatencyRow, latency
from vitprune.evaluate.memory import PeakMemory, file_size, peak_memory

__all__ = ["Accuracy", "LatencyRow", "PeakMemory", "accuracy", "file_size", "latency", "peak_memory"]
