"""Cost against accuracy for several models of one dense model: who is beaten by whom, as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vitprune.markdown import markdown_table
from vitprune.report.table import Row
from vitprune.report.terminal import print_table

COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
STAGES = ("dense", "pruned", "refitted", "fine-tuned")


@dataclass(frozen=True, slots=True)
class Time:
    """Milliseconds of one batch, pruned and dense in turns."""

    ms: float
    dense_ms: float
    ratio: float  # of the two
    batch: int


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One model of a sweep: finished, with what was measured of it, or failed, with the error."""

    name: str  # also of its folder
    asked: str  # "macs=0.5", "weight=2", "rate=0.4"
    rows: tuple[Row, ...] = ()  # dense, pruned, refitted and fine-tuned, as far as there was that; () for a failed one
    time: Time | None = None
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether there is a model."""
        return bool(self.rows)

    @property
    def last(self) -> Row:
        """The model that was saved."""
        return self.rows[-1]

    def shares(self) -> dict[str, float]:
        """Cost of every kind as a share of the dense model's; latency only where it was measured."""
        dense, last = self.rows[0], self.rows[-1]
        found = {"macs": last.macs / dense.macs, "params": last.params / dense.params}
        return found if self.time is None else found | {"latency": self.time.ratio}

    def top1(self) -> dict[str, float]:
        """Stage -> top-1, 0..1."""
        return {row.name: row.top1 for row in self.rows if row.top1 is not None}


@dataclass(frozen=True, slots=True)
class Front:
    """All points of a sweep, in the order in which they were asked for."""

    title: str
    points: tuple[FrontPoint, ...]
    about: Mapping[str, Any] = field(default_factory=dict)  # model, data, method, ... as JSON values

    @property
    def finished(self) -> tuple[FrontPoint, ...]:
        """Those with a model."""
        return tuple(p for p in self.points if p.done)

    @property
    def failed(self) -> tuple[FrontPoint, ...]:
        """Those with an error."""
        return tuple(p for p in self.points if p.error)

    @property
    def dense(self) -> Row | None:
        """The model that all come from."""
        return self.finished[0].rows[0] if self.finished else None

    def best(self) -> dict[str, tuple[str, ...]]:
        """Kind of cost -> names of the points on its front, cheapest first: see `pareto`; the dense model competes."""
        found: dict[str, tuple[str, ...]] = {}
        for cost in COSTS:
            points = [p for p in self.finished if cost in p.shares() and p.last.top1 is not None]
            costs = [p.shares()[cost] for p in points]
            gains = [p.last.top1 or 0.0 for p in points]
            dense = points[0].rows[0].top1 if points else None
            kept = pareto([*costs, 1.0], [*gains, -1.0 if dense is None else dense])[:-1]
            order = sorted((c, p.name) for c, p, stays in zip(costs, points, kept, strict=True) if stays)
            found[cost] = tuple(name for _, name in order)
        return found


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Whether each point is beaten by none: another beats it that is no worse in both and better in one."""

    def beats(i: int, j: int) -> bool:
        return costs[i] <= costs[j] and gains[i] >= gains[j] and (costs[i] < costs[j] or gains[i] > gains[j])

    every = range(len(costs))
    return [not any(beats(i, j) for i in every) for j in every]


def front_json(front: Front) -> dict[str, Any]:
    """Everything as JSON values."""
    best = front.best()
    points: list[dict[str, Any]] = []
    for p in front.points:
        entry: dict[str, Any] = {"name": p.name, "asked": p.asked, "status": "done" if p.done else "failed"}
        if p.done:
            entry |= {"shares": p.shares(), "top1": p.last.top1, "images": p.last.images}
            entry |= {"front": [c for c in COSTS if p.name in best[c]], "rows": [r.to_json() for r in p.rows]}
            if p.time is not None:
                entry["latency"] = {
                    "ms": p.time.ms,
                    "dense_ms": p.time.dense_ms,
                    "ratio": p.time.ratio,
                    "batch": p.time.batch,
                }
        points.append(entry | ({"error": p.error} if p.error else {}))
    dense = None if front.dense is None else front.dense.to_json()
    return {**front.about, "dense": dense, "fronts": {c: list(n) for c, n in best.items()}, "points": points}


def front_csv(front: Front) -> str:
    """A line per point, failed ones included; empty where nothing was measured."""
    best = front.best()
    columns = ["name", "asked", "status", "macs", "macs_share", "params", "params_share", "latency_ms", "latency_share"]
    columns += ["latency_batch", *(f"top1_{s.replace('-', '_')}" for s in STAGES), "images"]
    columns += [*(f"front_{c}" for c in COSTS), "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for p in front.points:
        line: dict[str, Any] = {"name": p.name, "asked": p.asked, "status": "done" if p.done else "failed"}
        if p.done:
            line |= {"macs": p.last.macs, "params": p.last.params, "images": p.last.images}
            line |= {f"{c}_share": f"{share:.5f}" for c, share in p.shares().items()}
            line |= {f"top1_{s.replace('-', '_')}": f"{v:.5f}" for s, v in p.top1().items()}
            line |= {f"front_{c}": int(p.name in best[c]) for c in p.shares()}
            if p.time is not None:
                line |= {"latency_ms": f"{p.time.ms:.4f}", "latency_batch": p.time.batch}
        writer.writerow(line | {"error": p.error})
    return text.getvalue()


def front_table(front: Front) -> tuple[list[str], list[list[str]]]:
    """Headings, and a line per finished point with the dense model first; stages that none has are left out."""
    points, best = front.finished, front.best()
    times = [p.time for p in points if p.time is not None]
    stages = [s for s in STAGES[1:] if any(s in p.top1() for p in points)]
    batch = f"ms, batch {times[0].batch}" if times else "ms"
    headings = ["asked", "MACs", "parameters", batch, *stages, "front of"]
    if front.dense is None:
        return headings, []

    def counts(row: Row, shares: Mapping[str, float]) -> list[str]:
        def share(name: str) -> str:
            return f" ({shares[name]:.1%})" if name in shares else ""

        return [f"{_short(row.macs)}{share('macs')}", f"{_short(row.params)}{share('params')}"]

    first = front.dense
    ms = f"{median(t.dense_ms for t in times):.2f}" if times else "-"
    top1 = "-" if first.top1 is None else f"{100 * first.top1:.2f}"
    lines = [["dense", *counts(first, {}), ms, *[""] * (len(stages) - 1), top1, ""]]
    for p in points:
        ms = "-" if p.time is None else f"{p.time.ms:.2f} ({p.time.ratio:.1%})"
        got = [f"{100 * p.top1()[s]:.2f}" if s in p.top1() else "-" for s in stages]
        on = [COSTS[c] for c in p.shares() if p.name in best[c]]
        where = "all" if len(on) == len(p.shares()) else ", ".join(on)
        lines.append([p.asked, *counts(p.last, p.shares()), ms, *got, where])
    return headings, lines


def _short(value: int) -> str:
    """17500000000 -> "17.5 G"."""
    unit, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / unit:.4g} {letter}"


def front_markdown(front: Front, picture: str = "") -> str:
    """A page: table, picture, failed points."""
    headings, lines = front_table(front)
    parts = [f"# {front.title}", ""]
    dense = front.dense
    if dense is not None and dense.images is not None:
        parts += [f"Accuracy is top-1 in % of the same {dense.images:,} images.", ""]
    if lines:
        parts += markdown_table(headings, lines, left={0, len(headings) - 1})
        parts += [
            "",
            "On the front of a cost: no other model, the dense one included, is as cheap and more accurate, or",
        ]
        parts += ["as accurate and cheaper."]
        parts += ["", f"![Top-1 against cost]({picture})"] if picture else []
    if front.failed:
        parts += [*([""] if lines else []), "Failed:", "", *(f"- {p.asked}: {p.error}" for p in front.failed)]
    return "\n".join(parts).rstrip() + "\n"


def print_front(front: Front) -> None:
    """Prints the table to standard output, and the failed points below it."""
    headings, lines = front_table(front)
    images = f"; top-1 in % of {front.dense.images:,} images" if front.dense is not None and front.dense.images else ""
    if lines:
        print_table(headings, lines, front.title + images, left=(0, len(headings) - 1))
    for p in front.failed:
        print(f"failed: {p.asked}: {p.error}")
