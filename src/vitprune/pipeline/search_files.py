"""What a search leaves for people to look at: the front of its probes, and what was found for each goal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vitprune.files import read_object, write_text
from vitprune.pipeline.search_folder import AGAIN, FOUND
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.report.probes import ProbeRow, draw_probes, probes_csv, probes_markdown
from vitprune.search import Goal, Judge, Probe, front


def write_search(
    out: Path,
    goal: Goal,
    settings: SearchSettings,
    judge: Judge,
    chosen: Probe,
    fixed: Mapping[str, Probe | None],
    probes: list[Probe],
    command: str = "",
) -> None:
    """The search's files: all probes, and what was found for each goal so far, by which command."""
    path = out / FOUND
    known = read_object(path, AGAIN) if path.is_file() else {}
    entry = {
        "goal": str(goal),
        "method": settings.method,
        "per": settings.per,
        "dense_top1": judge.dense.top1,
        "images": judge.dense.images,
        "probe": chosen.number,
        "command": command,
        "fixed": {name: None if probe is None else probe.number for name, probe in fixed.items()},
    }
    known[f"{goal.name}, {settings.method} per {settings.per}"] = entry
    write_text(path, json.dumps(known, indent=1))
    purposes = {e["probe"]: name for name, e in known.items()}
    metrics = [m for m in ("macs", "params", "latency") if all(m in p.costs for p in probes)]
    best = {m: {p.number for p in front(probes, m)} for m in metrics}
    rows = [
        ProbeRow(
            p.number,
            p.origin,
            p.quality.top1,
            p.lost.points,
            p.lost.error,
            p.quality.divergence,
            p.costs,
            p.shares,
            p.seconds,
            tuple(m for m in metrics if p.number in best[m]),
            purposes.get(p.number, ""),
        )
        for p in probes
    ]
    title = f"Probes of a search: {judge.dense.images:,} validation images, dense top-1 {100 * judge.dense.top1:.2f} %"
    write_text(out / "probes.csv", probes_csv(rows))
    write_text(out / "probes.md", probes_markdown(title, rows, "probes.png"))
    draw_probes(rows, 100 * judge.dense.top1, title, out / "probes.png")
