"""A picture of what stays, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitprune.errors import StoreError
from vitprune.plan import Plan

TITLES = {
    "heads": "attention heads",
    "qk": "query/key dims per head",
    "v": "value dims per head",
    "mlp": "MLP hidden units",
    "residual": "residual width",
    "block": "whole branches",
}
DENSE, KEPT = "#d9dee7", "#2f6db5"


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
    from matplotlib.ticker import MaxNLocator

    kinds = [kind for kind in TITLES if any(r.kind == kind for r in rows)]
    columns = 2 if len(kinds) > 1 else 1
    lines = max(1, -(-len(kinds) // columns))
    figure = Figure(figsize=(5.2 * columns, 2.5 * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(lines, columns, place + 1)
        part = [r for r in rows if r.kind == kind]
        at = [r.position for r in part]
        axes.bar(at, [r.dense for r in part], color=DENSE, width=0.8, label="dense")
        axes.bar(at, [r.kept for r in part], color=KEPT, width=0.8, label="kept")
        if len(part) <= 16:
            for r in part:
                axes.text(r.position, r.dense, str(r.kept), ha="center", va="bottom", fontsize=8, color="#333333")
            axes.set_ylim(0, max(r.dense for r in part) * 1.15)
        share = sum(r.kept for r in part) / max(sum(r.dense for r in part), 1)
        axes.set_title(f"{TITLES[kind]} ({share:.0%} kept)", fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if len(part) == 1:
            axes.set_xlim(-1.5, 1.5)
            axes.set_xticks([0])
        if place >= len(kinds) - columns:
            axes.set_xlabel("position in the model", fontsize=9)
    if kinds:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
