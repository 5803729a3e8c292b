"""What one of several runs left: the rows and the time of its saved model, or the error that ended it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitprune.errors import VitpruneError
from vitprune.files import read_object, write_text
from vitprune.pipeline.measure import row_from_json
from vitprune.plan import Plan
from vitprune.report import FrontPoint, Row, Time
from vitprune.store.read import METRICS, PLAN


def saved_point(folder: Path, name: str, asked: str, remedy: str) -> FrontPoint:
    """What was measured of the saved model. Raises StoreError, with the remedy, for a folder that cannot be read."""
    rows = tuple(row_from_json(row) for row in read_object(folder / METRICS, remedy)["rows"])
    got = Plan.from_json((folder / PLAN).read_text(encoding="utf-8")).obtained.get("latency")
    time = _time(rows)
    if got is not None:
        time = Time(got["value"], got["dense"], got["ratio"], got["batch"])
    return FrontPoint(name, asked, rows, time)


def alike(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    """The points with times of one batch size only, as only those compare."""
    batches = {None if p.time is None else p.time.batch for p in points if p.done}
    if len(batches) < 2:
        return tuple(points)
    batch = 32 if 32 in batches else 1
    return tuple(replace(p, time=_time(p.rows, batch)) if p.done else p for p in points)


def _time(rows: Sequence[Row], batch: int = 1) -> Time | None:
    """What `with_latency` measured at batch 1 or 32."""
    dense, last = ((r.latency_ms if batch == 1 else r.latency32_ms) for r in (rows[0], rows[-1]))
    return None if dense is None or last is None else Time(last, dense, last / dense, batch)


def note_failure(path: Path, about: Mapping[str, Any], error: Exception) -> str:
    """Keeps the error at `path`, and gives it in one line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    entry = {**about, "error": text}
    if not isinstance(error, VitpruneError):
        entry["traceback"] = "".join(traceback.format_exception(error))
    write_text(path, json.dumps(entry, indent=1))
    return text
