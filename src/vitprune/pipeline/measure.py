"""One row of the table: a model's size, cost, accuracy and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from vitprune import evaluate, models
from vitprune.data import Batches, Data
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Progress
from vitprune.report import Answers, Row

LATENCY_SECONDS = 8.0  # spent on each batch size at most, roughly
LEAST_SECONDS = 0.3  # and at least, so that what else runs here meets both models
BATCHES = (1, 32)


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's row, and which class it gave every image."""

    row: Row
    answers: Answers | None = None  # None: measured by an earlier version

    def to_json(self) -> dict[str, Any]:
        """The row's fields and the answers as JSON values."""
        return self.row.to_json() | ({} if self.answers is None else {"answers": self.answers.to_json()})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Measured:
        """The value that `to_json` wrote, or a row alone."""
        values = dict(fields)
        given = values.pop("answers", None)
        return cls(row_from_json(values), None if given is None else Answers.from_json(given))


def measured(name: str, model: nn.Module, macs: int, test: Batches, device: str, progress: Progress) -> Measured:
    """The row of a model, and what it answered.

    Parameters are counted, top-1 is measured on `test`; MACs are as the traced polynomial gives them.
    """
    accuracy = evaluate.accuracy(model, test, device, progress=progress)
    row = Row(
        name,
        sum(p.numel() for p in model.parameters()),
        macs,
        top1=accuracy.top1,
        ci95=accuracy.ci95,
        images=accuracy.n,
        bytes=tensor_bytes(model),
    )
    labels, predicted = (np.frombuffer(b, "<u4").astype(np.int64) for b in (accuracy.labels, accuracy.predicted))
    return Measured(row, Answers.of(test.identity(), labels, predicted))


def answered(dense: Answers | None, saved: Answers | None) -> dict[str, Any]:
    """Which test images the saved model was right about, and what it and the dense model answered, as JSON."""
    given = {name: a.to_json() for name, a in (("dense", dense), ("saved", saved)) if a is not None}
    return {"right": None if saved is None else saved.hits().to_json(), "answers": given}


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of the model's tensors, shared ones once: the size of its safetensors file but for the header."""
    seen = {(t.device, t.data_ptr(), tuple(t.shape)): t.numel() * t.element_size() for t in model.state_dict().values()}
    return sum(seen.values())


def with_latency(
    rows: Sequence[Row], dense: nn.Module, pruned: nn.Module, preprocessing: Preprocessing, device: str
) -> list[Row]:
    """The rows with median latencies (ms) at batch 1 and 32, dense and pruned model in turns, and memory (MiB).

    All rows but the one named "dense" have the pruned model's structure, hence its latency and memory.
    """
    named, image = {"dense": dense, "pruned": pruned}, models.example(preprocessing, batch=1)
    found: dict[tuple[str, int], float] = {}
    (first, _) = evaluate.latency(named, image, batch_sizes=(1,), warmup=2, repeats=3, device=device)
    for batch in BATCHES:
        turn_s = max(2 * first.median_ms * batch / 1000, 1e-3)
        repeats = max(3, min(40, int(LATENCY_SECONDS / turn_s)), int(LEAST_SECONDS / turn_s))
        measured = evaluate.latency(
            named, image, batch_sizes=(batch,), warmup=min(5, repeats), repeats=repeats, device=device
        )
        found |= {(r.name, batch): r.median_ms for r in measured}
    memory = {name: evaluate.peak_memory(model, image, device).mib for name, model in named.items()}
    result: list[Row] = []
    for row in rows:
        name = "dense" if row.name == "dense" else "pruned"
        ms, ms32 = found[name, 1], found[name, 32]
        result.append(replace(row, latency_ms=ms, latency32_ms=ms32, memory_mib=memory[name]))
    return result


def row_from_json(fields: Mapping[str, Any]) -> Row:
    """The row that `Row.to_json` wrote."""
    values = dict(fields)
    if values.get("ci95") is not None:
        low, high = values["ci95"]
        values["ci95"] = (low, high)
    return Row(**values)


def measured_split(data: Data) -> Batches:
    """Images that measured accuracy is of: the set's test images where it has some, else its validation images."""
    return data.val if data.test is None else data.test


def say(row: Row) -> str:
    """The row in one line."""
    top1 = "" if row.top1 is None else f"top-1 {100 * row.top1:.2f} % of {row.images} images, "
    return f"{row.name}: {top1}{row.params:,} parameters, {row.macs:,} MACs"
