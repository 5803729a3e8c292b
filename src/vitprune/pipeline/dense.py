"""The dense model's row, for commands that prune one model several times."""

from __future__ import annotations

from vitprune import models
from vitprune.data import Data
from vitprune.pipeline.measure import measured_split, row_of, say
from vitprune.pipeline.opening import Opened
from vitprune.progress import Progress
from vitprune.report import Row
from vitprune.trace import trace


def dense_row(opened: Opened, images: Data, device: str, progress: Progress) -> Row:
    """What there is to measure of the model as it came, but for its latency."""
    graph = trace(opened.model, (models.example(opened.loaded.preprocessing).to(device),))
    row = row_of("dense", opened.model, graph.cost()[0], measured_split(images), device, progress)
    progress.line(say(row))
    return row
