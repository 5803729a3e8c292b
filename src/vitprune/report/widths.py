"""A picture of what stays, block by block."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.plan import Plan
from vitprune.report.drawn import save_figure
from vitprune.report.palette import BLUE, DENSE_BAR, MARKS, SERIES, SOFT
from vitprune.report.panel import WIDTH, Panel, blank, entry, key
from vitprune.report.svg import tip

TITLES = {
    "heads": "attention heads",
    "qk": "query/key dims per head",
    "v": "value dims per head",
    "mlp": "MLP hidden units",
    "residual": "residual width",
    "block": "whole branches",
}
DENSE, KEPT, TEXT = DENSE_BAR, BLUE, SOFT


@dataclass(frozen=True, slots=True)
class WidthRow:
    """One group's width before and after."""

    kind: str
    group: str
    position: int  # among the groups of its kind, in the model's order
    dense: int  # units per lane
    kept: int  # units per lane


def width_rows(plan: Plan) -> tuple[WidthRow, ...]:
    """A row per group, in the plan's order."""
    seen: dict[str, int] = {}
    rows: list[WidthRow] = []
    for name, group in plan.groups.items():
        position = seen.get(group.kind, 0)
        seen[group.kind] = position + 1
        rows.append(WidthRow(group.kind, name, position, group.size, group.kept_size))
    return tuple(rows)


def draw_widths(rows: Sequence[WidthRow], path: Path, title: str = "") -> None:
    """Writes a picture (by the suffix of `path`: png, svg, pdf): per kind of group a bar for every block.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if any(r.kind == kind for r in rows)]
    columns = 2 if len(kinds) > 1 else 1
    lines = max(1, -(-len(kinds) // columns))
    figure = Figure(figsize=(5.2 * columns, 2.5 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(lines, columns, place + 1)
        _bars(axes, [r for r in rows if r.kind == kind])
        if place >= len(kinds) - columns:
            axes.set_xlabel("position in the model", fontsize=9)
    if kinds:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)


def _bars(axes: Any, part: Sequence[WidthRow]) -> None:
    """One kind's groups, what stays before what was there."""
    for label, color, sizes in (
        ("dense", DENSE, [r.dense for r in part]),
        ("kept", KEPT, [r.kept for r in part]),
    ):
        drawn = axes.bar([r.position for r in part], sizes, color=color, width=0.8, label=label)
        for bar, r in zip(drawn, part, strict=True):
            tip(bar, [f"{r.group}: {r.kept} of {r.dense} kept"])
    if len(part) <= 16:
        for r in part:
            axes.text(r.position, r.dense, str(r.kept), ha="center", va="bottom", fontsize=8, color=TEXT)
        axes.set_ylim(0, max(r.dense for r in part) * 1.15)
    axes.set_title(_title(part), fontsize=10, loc="left", fontweight="bold")
    _dress(axes, part)


def _title(part: Sequence[WidthRow]) -> str:
    share = sum(r.kept for r in part) / max(sum(r.dense for r in part), 1)
    return f"{TITLES[part[0].kind]} ({share:.0%} kept)"


def _dress(axes: Any, part: Sequence[WidthRow]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if len(part) == 1:
        axes.set_xlim(-1.5, 1.5)
        axes.set_xticks([0])


def untouched(models: Mapping[str, Sequence[WidthRow]]) -> tuple[str, ...]:
    """Kinds of group of which no model loses a unit."""
    rows = [r for part in models.values() for r in part]
    cut = {r.kind for r in rows if r.kept < r.dense}
    return tuple(kind for kind in TITLES if kind not in cut and any(r.kind == kind for r in rows))


def width_panels(models: Mapping[str, Sequence[WidthRow]]) -> tuple[Panel, ...]:
    """A picture per kind of group: bars for one model; for several a line each, before the dense model's bars.

    Kinds that lose nothing in any model are left out, see `untouched`.
    """
    found = []
    for kind in TITLES:
        parts = {name: [r for r in rows if r.kind == kind] for name, rows in models.items()}
        parts = {name: part for name, part in parts.items() if part}
        if not parts or kind in untouched(models):
            continue
        first = next(iter(parts.values()))
        figure, axes = blank(WIDTH, 2.5)
        if len(parts) == 1:
            _bars(axes, first)
            told = f"{_title(first)}: " + ", ".join(f"{r.kept} of {r.dense}" for r in first[:24])
        else:
            drawn = axes.bar([r.position for r in first], [r.dense for r in first], color=DENSE, label="dense")
            for bar, r in zip(drawn, first, strict=True):
                tip(bar, [f"{r.group}: {r.dense} in the dense model"])
            for place, (name, part) in enumerate(parts.items()):
                _line(axes, name, part, place)
            axes.set_title(TITLES[kind], fontsize=10, loc="left", fontweight="bold")
            _dress(axes, first)
            told = f"{TITLES[kind]} by position in the model, of {len(parts)} models"
        axes.set_xlabel("position in the model")
        key(axes)
        found.append(Panel(f"widths-{kind}", told, figure))
    return tuple(found)


def _line(axes: Any, name: str, part: Sequence[WidthRow], place: int) -> None:
    colour, mark = SERIES[place % len(SERIES)], MARKS[place // len(SERIES) % len(MARKS)]
    (line,) = axes.plot(
        [r.position for r in part], [r.kept for r in part], color=colour, marker=mark, markersize=4, linewidth=1.3,
        label=entry(name),
    )  # fmt: skip
    tip(line, [f"{name}: {r.group}, {r.kept} of {r.dense} kept" for r in part])


def widths_csv(models: Mapping[str, Sequence[WidthRow]]) -> str:
    """A line per model and group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "kind", "group", "position", "dense", "kept"])
    for name, rows in models.items():
        writer.writerows([name, r.kind, r.group, r.position, r.dense, r.kept] for r in rows)
    return text.getvalue()
