"""A comparison as JSON, CSV, a page and printed tables."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from statistics import fmean
from typing import Any

from vitprune.markdown import markdown_table
from vitprune.report.comparison import Comparison, Difference, Summary
from vitprune.report.front import COSTS, STAGES
from vitprune.report.paired import Interval
from vitprune.report.terminal import print_table

Table = tuple[list[str], list[list[str]]]  # headings, lines
LEFT = ("method", "asked")


def comparison_json(found: Comparison) -> dict[str, Any]:
    """Everything as JSON values but for single images; accuracies and their differences lie in 0..1."""
    cells: list[dict[str, Any]] = []
    for c in found.cells:
        entry: dict[str, Any] = {
            "method": c.method,
            "asked": c.asked,
            "seed": c.seed,
            "cell": c.key,
            "status": c.status,
        }
        if c.point.done:
            entry |= {"top1": c.point.last.top1, "images": c.point.last.images, "shares": c.point.shares()}
            entry |= {"minutes": c.minutes, "rows": [row.to_json() for row in c.point.rows]}
        cells.append(entry | ({"error": c.point.error} if c.point.error else {}))
    summaries = [asdict(s) for s in found.summaries()]
    differences = [asdict(d) for d in found.differences()]
    return {**found.about, "baseline": found.baseline, "table": summaries, "differences": differences, "cells": cells}


def comparison_csv(found: Comparison) -> str:
    """A line per cell; empty where nothing was measured."""
    columns = ["method", "asked", "seed", "cell", "status", "top1", "images", *(f"{c}_share" for c in COSTS)]
    columns += ["macs", "params", "latency_ms", "latency_batch", *(f"top1_{s.replace('-', '_')}" for s in STAGES)]
    columns += ["minutes", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for c in found.cells:
        line: dict[str, Any] = {"method": c.method, "asked": c.asked, "seed": c.seed, "cell": c.key, "status": c.status}
        if c.point.done:
            last, time = c.point.last, c.point.time
            line |= {"images": last.images, "macs": last.macs, "params": last.params}
            line |= {f"{cost}_share": f"{share:.5f}" for cost, share in c.point.shares().items()}
            line |= {f"top1_{s.replace('-', '_')}": f"{v:.5f}" for s, v in c.point.top1().items()}
            line |= {} if last.top1 is None else {"top1": f"{last.top1:.5f}"}
            line |= {} if time is None else {"latency_ms": f"{time.ms:.4f}", "latency_batch": time.batch}
            line |= {} if c.minutes is None else {"minutes": f"{c.minutes:.2f}"}
        writer.writerow(line | {"error": c.point.error})
    return text.getvalue()


def comparison_table(found: Comparison) -> Table:
    """A line for the dense model, and one per target and method."""
    times = {c.point.time.batch for c in found.finished if c.point.time is not None}
    latency = f"latency, batch {times.pop()}" if len(times) == 1 else "latency"
    headings = ["asked", "method", "top-1 %", "seeds", "MACs", "parameters", latency, "minutes"]
    failed = bool(found.failed)
    headings += ["failed"] if failed else []
    dense = [row.top1 for row in found.dense().values() if row.top1 is not None]
    lines = []
    if dense:
        lines = [["", "dense", f"{100 * fmean(dense):.2f}", "", "", "", "", "", *([""] if failed else [])]]
    for s in found.summaries():
        lines.append([*_line(s), *([str(s.failed) if s.failed else ""] if failed else [])])
    return headings, lines


def _line(s: Summary) -> list[str]:
    top1 = "-" if s.top1 is None else f"{100 * s.top1.mean:.2f}"
    top1 += "" if s.top1 is None or s.top1.sd is None else f" ± {100 * s.top1.sd:.2f}"
    shares = [f"{s.shares[cost]:.1%}" if cost in s.shares else "-" for cost in COSTS]
    return [s.asked, s.method, top1, str(len(s.seeds)), *shares, "-" if s.minutes is None else f"{s.minutes:.1f}"]


def difference_table(found: Comparison) -> Table:
    """A line per target and method but the baseline, in points of top-1."""
    headings = ["asked", "method", "difference", "standard error", "95 % by seeds", "seeds", "95 % by images", "p"]
    return headings, [_pair(d) for d in found.differences()]


def _pair(d: Difference) -> list[str]:
    se = "-" if d.by_seed.se is None else f"{100 * d.by_seed.se:.2f}"
    p = "-" if d.by_image is None or d.by_image.p is None else f"{d.by_image.p:.2g}"
    mean = f"{100 * d.by_seed.mean:+.2f}"
    return [d.asked, d.method, mean, se, _ends(d.by_seed), str(d.by_seed.n), _ends(d.by_image), p]


def _ends(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "-"
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def _markdown(table: Table) -> list[str]:
    return markdown_table(*table, _left(table[0]))


def _left(headings: list[str]) -> list[int]:
    return [i for i, heading in enumerate(headings) if heading in LEFT]


def comparison_markdown(found: Comparison, picture: str = "") -> str:
    """A page: both tables with what they mean, picture, failed cells."""
    parts = [f"# {found.title}", ""]
    if found.finished:
        images = sorted({f"{c.point.last.images:,}" for c in found.finished if c.point.last.images})
        many = " or ".join(images) or "the"
        parts += [
            f"Mean and standard deviation over seeds of top-1 in % of {many} images. Costs are shares of the dense"
        ]
        parts += ["model's: means, of latency the median.", "", *_markdown(comparison_table(found)), ""]
        parts += [f"![Top-1 against cost]({picture})", ""] if picture else []
    if found.differences():
        parts += [f"## Differences from {found.baseline}", ""]
        parts += [
            "Points of top-1, a difference for each seed that both have: their mean, its standard error, and Student's"
        ]
        parts += [
            "95 % interval, for what other seeds would give. By images: for what other test images would give, these"
        ]
        parts += [
            "models given; p is of McNemar's exact test, for one seed.",
            "",
            *_markdown(difference_table(found)),
            "",
        ]
    if found.failed:
        parts += ["Failed:", "", *(f"- {c.name} ({c.key}): {c.point.error}" for c in found.failed)]
    return "\n".join(parts).rstrip() + "\n"


def print_comparison(found: Comparison) -> None:
    """Prints both tables to standard output, and the failed cells below them."""
    for title, (headings, lines) in (
        (found.title, comparison_table(found)),
        (f"points of top-1 more than {found.baseline}", difference_table(found)),
    ):
        if lines:
            print_table(headings, lines, title, left=_left(headings))
    for c in found.failed:
        print(f"failed: {c.name}: {c.point.error}")
