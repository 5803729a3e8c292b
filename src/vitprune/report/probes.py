"""What a search tried: a table, a file of rows, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.markdown import markdown_table
from vitprune.normal import Z95
from vitprune.report.drawn import save_figure

NAMES = {"macs": "MACs", "params": "parameters", "latency": "predicted latency"}
FIXED = {"uniform": ("s", "#c2543d"), "cascade": ("^", "#b8860b")}  # marks of fixed ratios
FRONT, OTHER, CHOSEN = "#2f6db5", "#b9c6d6", "#1d1d1f"
DEAD = 0.5  # of the dense model's top-1, below which a probe lies at the lower edge


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One probe; accuracies are of the validation images."""

    number: int
    origin: str
    top1: float  # 0..1
    lost: float  # points, against the dense model
    error: float  # standard error of lost
    divergence: float  # nats
    costs: Mapping[str, float]  # shares of the dense model's
    shares: Mapping[str, float]
    seconds: float
    front: tuple[str, ...]  # costs on whose front it is
    chosen: str = ""  # the goal that it was chosen for


def probes_csv(rows: Sequence[ProbeRow]) -> str:
    """A line per probe."""
    metrics = list(dict.fromkeys(m for r in rows for m in r.costs))
    axes = list(dict.fromkeys(a for r in rows for a in r.shares))
    columns = ["probe", "origin", "top1", "lost_points", "lost_error", "divergence_nats", *metrics]
    columns += [*(f"share {a}" for a in axes), *(f"front_{m}" for m in metrics), "chosen_for", "seconds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for r in rows:
        line: dict[str, Any] = {"probe": r.number, "origin": r.origin, "top1": f"{r.top1:.5f}"}
        line |= {"lost_points": f"{r.lost:.4f}", "lost_error": f"{r.error:.4f}"}
        line |= {"divergence_nats": f"{r.divergence:.6f}", "seconds": f"{r.seconds:.2f}", "chosen_for": r.chosen}
        line |= {m: f"{share:.5f}" for m, share in r.costs.items()}
        line |= {f"share {a}": f"{share:.5f}" for a, share in r.shares.items()}
        writer.writerow(line | {f"front_{m}": int(m in r.front) for m in r.costs})
    return text.getvalue()


def probes_markdown(title: str, rows: Sequence[ProbeRow], picture: str) -> str:
    """A page: those of a front, those of fixed ratios, those chosen."""
    listed = [r for r in rows if r.front or r.chosen or r.origin in FIXED]
    listed.sort(key=lambda r: r.costs["macs"])
    metrics = [m for m in NAMES if any(m in r.costs for r in listed)]
    headings = ["probe", "origin", *(f"{NAMES[m]}, %" for m in metrics), "top-1, %", "points lost", "chosen for"]
    lines = [
        [
            str(r.number),
            r.origin,
            *(f"{100 * r.costs[m]:.1f}" + (" *" if m in r.front else "") if m in r.costs else "-" for m in metrics),
            f"{100 * r.top1:.2f}",
            f"{r.lost:+.2f} ± {Z95 * r.error:.2f}",
            r.chosen,
        ]
        for r in listed
    ]
    parts = [f"# {title}", "", *markdown_table(headings, lines, left={1, len(headings) - 1})]
    parts += [
        "",
        f"{len(rows)} probes; listed are those that no other beats in a cost and in top-1 (*), those of fixed",
    ]
    parts += ["ratios, and those that were chosen. ±: half of the paired 95 % interval.", ""]
    return "\n".join([*parts, f"![Top-1 against cost]({picture})"]) + "\n"


def draw_probes(rows: Sequence[ProbeRow], dense: float, title: str, path: Path) -> None:
    """Writes a picture: top-1 against each cost; dense: the dense model's top-1 in percent.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    metrics = [m for m in NAMES if any(m in r.costs for r in rows)]
    figure = Figure(figsize=(2.2 + 4.1 * len(metrics), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    alive = [100 * r.top1 for r in rows if 100 * r.top1 >= DEAD * dense]
    floor = min([*alive, dense]) - 0.08 * max(dense - min([*alive, dense]), 1.0)

    def at(some: Sequence[ProbeRow], metric: str) -> tuple[list[float], list[float]]:
        return [r.costs[metric] for r in some], [max(100 * r.top1, floor) for r in some]

    for panel, metric in zip(panels, metrics, strict=True):
        mine = sorted((r for r in rows if metric in r.costs), key=lambda r: r.costs[metric])
        searched = [r for r in mine if r.origin not in FIXED]
        panel.axhline(dense, color="#8b929e", linewidth=0.9, linestyle="--", label="dense")
        panel.plot(*at(searched, metric), "o", color=OTHER, markersize=4.5, label="probe")
        for name, (mark, colour) in FIXED.items():
            some = [r for r in mine if r.origin == name]
            if some:
                panel.plot(*at(some, metric), mark, color=colour, markersize=5.5, fillstyle="none", label=name)
        best = [r for r in mine if metric in r.front]
        panel.plot(*at(best, metric), "-", color=FRONT, linewidth=1.4, label="front of all")
        chosen = [r for r in mine if r.chosen]
        panel.plot(*at(chosen, metric), "*", color=CHOSEN, markersize=12, label="chosen")
        panel.set_xlabel(f"{NAMES[metric]}, share of the dense model's", fontsize=9)
        panel.set_ylim(floor, None)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.grid(color="#eceef2", linewidth=0.7)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("top-1 %, validation images", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save_figure(figure, path)
