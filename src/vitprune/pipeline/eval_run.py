"""What `vitprune eval` measures."""

from __future__ import annotations

from typing import Any

from vitprune import evaluate
from vitprune.pipeline.measure import measured_split
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings


def run_eval(
    spec: str,
    data: DataSettings,
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    allow_module: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """top1, top5 (shares), ci95 of top1, images, split ("test" or "validation"), as JSON values.

    Raises ModelError, DataError or StoreError when the model or the data cannot be had or do not fit.
    """
    said = progress or Silent()
    place = resolve_device(device)
    reading = TrainSettings(batch_size=batch_size, seed=seed)
    opened, images = open_both(spec, data, reading, device=place, progress=said, allow_module=allow_module)
    found = evaluate.accuracy(opened.model, measured_split(images), place, progress=said)
    split = "validation" if images.test is None else "test"
    return {
        "model": spec,
        "data": data.spec,
        "split": split,
        "images": found.n,
        "top1": found.top1,
        "top5": found.top5,
        "ci95": list(found.ci95),
    }
