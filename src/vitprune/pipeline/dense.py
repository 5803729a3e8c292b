"""What is measured of the dense model, for commands that prune one model several times."""

from __future__ import annotations

from vitprune import models
from vitprune.data import Data
from vitprune.pipeline.measure import Measured, measured, measured_split, say
from vitprune.pipeline.opening import Opened
from vitprune.progress import Progress
from vitprune.trace import trace


def measured_dense(opened: Opened, images: Data, device: str, progress: Progress) -> Measured:
    """What there is to measure of the model as it came, but for its latency."""
    graph = trace(opened.model, (models.example(opened.loaded.preprocessing).to(device),))
    found = measured("dense", opened.model, graph.cost()[0], measured_split(images), device, progress)
    progress.line(say(found.row))
    return found
