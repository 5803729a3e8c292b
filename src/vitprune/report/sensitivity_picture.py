"""A heat map of what is lost when one part of one block is smaller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from vitprune.errors import StoreError
from vitprune.report.sensitivity import (
    NATS,
    SensitivityLine,
    SensitivityRow,
    nats,
    points,
    sensitivity_blocks,
    sensitivity_lines,
)

MISSING, EDGE, UNSURE = "#f1f2f5", "#d3d7de", "#8b929e"
CAP = 5.0  # points of top-1 from which on the colour stays the same: a part that loses more is not to be touched
DECADES = 4  # of divergence that the colours tell apart
GAP = 0.3  # between parts, in heights of a line
CELL, LINE = 0.44, 0.27  # inches


def draw_sensitivity(rows: Sequence[SensitivityRow], path: Path, title: str = "") -> None:
    """Writes a picture (by the suffix of `path`: png, svg, pdf): two heat maps, a column per block.

    Above, divergence on a logarithmic scale; below, top-1 lost, pale where it cannot be told from 0. A line is a part
    at one fraction removed; what reaches into all blocks fills the line. Hatched: not measured; white: there is none.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import StrMethodFormatter

    lines, blocks = sensitivity_lines(rows), sensitivity_blocks(rows)
    places, have = _places(lines), {(row.part, row.block) for row in rows}
    columns = max(len(blocks), 1)
    height = LINE * (places[-1] + 1 if places else 1)
    figure = Figure(figsize=(max(2.9 + CELL * columns, 6.0), 2 * (height + 0.75) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1)
    cells = [row for line in lines for row in line.cells.values()]
    largest = max([1000 * (row.divergence or 0.0) for row in cells], default=1.0) or 1.0
    smallest = min([1000 * row.divergence for row in cells if row.divergence], default=largest)
    low = max(min(smallest, largest / 10), largest / 10**DECADES)
    most = max([row.lost or 0.0 for row in cells], default=1.0)
    missing = False
    for panel, norm, colours, label, unit, value, text, extend in (
        (
            upper, LogNorm(low, largest, clip=True), "Blues", f"Divergence from the dense model, {NATS}", "nat / 1000",
            lambda row: 1000 * (row.divergence or 0.0), lambda row: nats(row.divergence or 0.0),
            "min" if smallest < low else "neither",
        ),
        (
            lower, Normalize(0, min(max(most, 1.0), CAP), clip=True), "Oranges", "Top-1 lost, points", "points",
            lambda row: row.lost or 0.0, points, "max" if most > CAP else "neither",
        ),
    ):  # fmt: skip
        shades = ScalarMappable(norm, colours)
        missing |= _panel(panel, lines, places, blocks, have, shades, value, text, grey=panel is lower)
        bar = figure.colorbar(shades, ax=panel, extend=extend, pad=0.01, fraction=0.05, aspect=max(6, 3.2 * height))
        panel.set_title(label, fontsize=9, loc="left")
        bar.set_label(unit, fontsize=8)
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    lower.set_xlabel("block", fontsize=9)
    handles = [Patch(facecolor=MISSING, edgecolor=EDGE, hatch="////", label="not measured")] if missing else []
    if any(not row.surely for row in cells):
        handles.append(Patch(facecolor="none", edgecolor="none", label="grey, pale: cannot be told from 0 (95 %)"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _places(lines: Sequence[SensitivityLine]) -> list[float]:
    """Height of every line from the top; parts stand apart."""
    found: list[float] = []
    for number, line in enumerate(lines):
        apart = GAP if number and lines[number - 1].part != line.part else 0.0
        found.append(found[-1] + 1 + apart if found else 0.0)
    return found


def _panel(
    panel: Any,
    lines: Sequence[SensitivityLine],
    places: Sequence[float],
    blocks: Sequence[int],
    have: Collection[tuple[str, int | None]],
    shades: Any,
    value: Callable[[SensitivityRow], float],
    text: Callable[[SensitivityRow], str],
    *,
    grey: bool,
) -> bool:
    """Draws the cells; whether one of `have`, the parts and their blocks, was missing."""
    from matplotlib.patches import Rectangle

    columns, missing = max(len(blocks), 1), False
    spans: list[tuple[int | None, int, int]] = [(None, 0, columns), *((b, i, 1) for i, b in enumerate(blocks))]
    for line, top in zip(lines, places, strict=True):
        for block, left, width in spans:
            if (line.part, block) not in have:
                continue
            row = line.cells.get(block)
            if row is None:
                missing = True
                blank = Rectangle((left, top), width, 1, facecolor=MISSING, edgecolor=EDGE, hatch="////", linewidth=0)
                panel.add_patch(blank)
                continue
            unsure = grey and not row.surely
            colour = shades.to_rgba(0.0 if unsure else value(row))
            panel.add_patch(Rectangle((left, top), width, 1, facecolor=colour, edgecolor="white", linewidth=1.0))
            dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 0.55
            ink = "white" if dark else UNSURE if unsure else "#222222"
            panel.text(left + width / 2, top + 0.52, text(row), ha="center", va="center", fontsize=7, color=ink)
    panel.set_xlim(0, columns)
    panel.set_ylim(places[-1] + 1 if places else 1, 0)
    panel.set_xticks([i + 0.5 for i in range(len(blocks))], [str(b) for b in blocks])
    panel.set_yticks([top + 0.5 for top in places], [line.label for line in lines])
    panel.tick_params(length=0, labelsize=8)
    panel.spines[:].set_visible(False)
    return missing
