"""What `vitprune bench` measures: latency, memory and MACs, dense and pruned in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from vitprune import evaluate, models
from vitprune.errors import TargetError
from vitprune.pipeline.opening import dense_skeleton, open_model
from vitprune.pipeline.setup import resolve_device
from vitprune.report.terminal import print_table
from vitprune.trace import trace


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model at one batch size."""

    name: str  # "dense" or "pruned", or "model" when there is no dense twin
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    threads: int
    device: str
    images_per_s: float
    memory_mib: float  # peak of weights and forward pass together, at this batch size
    macs: int  # per image
    params: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def run_bench(
    spec: str,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int | None = None,
    repeats: int = 30,
    device: str = "auto",
    allow_module: str | None = None,
) -> tuple[BenchRow, ...]:
    """Latency, peak memory and costs of the model; of a saved folder also those of its dense twin, measured in turns.

    Weights do not matter for speed, so a dense twin has none.

    Raises TargetError for sizes below 1, ModelError or StoreError when the model cannot be had.
    """
    if not batch_sizes or min(batch_sizes) < 1 or repeats < 1 or (threads is not None and threads < 1):
        raise TargetError(
            f"batch sizes, repeats and threads must be at least 1, but got {list(batch_sizes)}, {repeats}, {threads}"
        )
    place = resolve_device(device)
    opened = open_model(spec, device=place, allow_module=allow_module)
    named: dict[str, nn.Module] = {}
    if opened.plan is not None:
        named["dense"] = dense_skeleton(opened.plan, opened.loaded.preprocessing)[0].to(place).eval()
    named["pruned" if opened.plan is not None else "model"] = opened.model
    traced = models.example(opened.loaded.preprocessing).to(place)
    macs = {name: trace(model, (traced,)).cost()[0] for name, model in named.items()}
    image = models.example(opened.loaded.preprocessing, batch=1)
    measured = evaluate.latency(
        named, image, batch_sizes=tuple(batch_sizes), threads=threads, repeats=repeats, device=place
    )
    rows: list[BenchRow] = []
    for r in measured:
        model = named[r.name]
        images = models.example(opened.loaded.preprocessing, batch=r.batch).to(place)
        rows.append(
            BenchRow(
                r.name,
                r.batch,
                r.median_ms,
                r.p10_ms,
                r.p90_ms,
                r.threads,
                r.device,
                1000.0 * r.batch / r.median_ms,
                evaluate.peak_memory(model, images, place).mib,
                macs[r.name],
                sum(p.numel() for p in model.parameters()),
            )
        )
    return tuple(rows)


def print_bench(rows: Sequence[BenchRow]) -> None:
    """Prints the rows to standard output; "x" is the speed-up over the dense twin at the same batch size."""
    dense = {r.batch: r.median_ms for r in rows if r.name == "dense"}
    lines = [
        [
            r.name,
            str(r.batch),
            f"{r.median_ms:.2f}",
            f"{r.p10_ms:.2f}",
            f"{r.p90_ms:.2f}",
            f"{dense[r.batch] / r.median_ms:.2f}" if r.batch in dense else "-",
            f"{r.images_per_s:.1f}",
            f"{r.memory_mib:.1f}",
            f"{r.macs:,}",
            f"{r.params:,}",
        ]
        for r in rows
    ]
    headings = ["model", "batch", "median ms", "p10", "p90", "x", "images/s", "peak MiB", "MACs", "parameters"]
    print_table(headings, lines, f"{rows[0].device}, {rows[0].threads} thread(s), float32")
