"""A heat map of what is lost when one part of one block is smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.normal import Z95
from vitprune.report.drawn import save_figure
from vitprune.report.palette import ink_on
from vitprune.report.panel import Panel, blank
from vitprune.report.sensitivity import (
    NATS,
    SensitivityLine,
    SensitivityRow,
    nats,
    points,
    sensitivity_blocks,
    sensitivity_lines,
)
from vitprune.report.svg import tip

MISSING, EDGE, UNSURE = "#f1f2f5", "#d3d7de", "#5c636e"
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
    from matplotlib.figure import Figure

    maps = heat_maps(rows)
    width, height = maps[0].inches
    figure = Figure(figsize=(width, 2 * height + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1)
    missing = [draw_heat(panel, heat) for panel, heat in zip(panels, maps, strict=True)]
    panels[-1].set_xlabel("block", fontsize=9)
    _legend(figure, maps, any(missing))
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)


def sensitivity_panels(rows: Sequence[SensitivityRow]) -> tuple[Panel, ...]:
    """The two heat maps of `draw_sensitivity`, each a figure of its own."""
    found = []
    for name, heat in zip(("divergence", "top1-lost"), heat_maps(rows), strict=True):
        figure, panel = blank(*heat.inches)
        missing = draw_heat(panel, heat)
        panel.set_xlabel("block", fontsize=9)
        _legend(figure, [heat], missing)
        found.append(Panel(f"sensitivity-{name}", f"Heat map by part and block: {heat.label}", figure))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """One heat map, before it is drawn."""

    rows: Sequence[SensitivityRow]
    label: str
    unit: str
    norm: Any  # matplotlib's, of the colours
    colours: str
    value: Callable[[SensitivityRow], float]
    text: Callable[[SensitivityRow], str]
    extend: str  # ends of the scale that are open
    grey: bool  # what cannot be told from 0 is pale

    @property
    def height(self) -> float:
        """Of all lines, in inches."""
        places = _places(sensitivity_lines(self.rows))
        return LINE * (places[-1] + 1 if places else 1)

    @property
    def inches(self) -> tuple[float, float]:
        """Width and height of the map with its labels."""
        return max(2.9 + CELL * max(len(sensitivity_blocks(self.rows)), 1), 6.0), self.height + 0.75


def heat_maps(rows: Sequence[SensitivityRow]) -> tuple[Heat, Heat]:
    """That of divergence, and that of top-1 lost."""
    from matplotlib.colors import LogNorm, Normalize

    cells = [row for line in sensitivity_lines(rows) for row in line.cells.values()]
    largest = max([1000 * (row.divergence or 0.0) for row in cells], default=1.0) or 1.0
    smallest = min([1000 * row.divergence for row in cells if row.divergence], default=largest)
    low = max(min(smallest, largest / 10), largest / 10**DECADES)
    most = max([row.lost or 0.0 for row in cells], default=1.0)
    return (
        Heat(
            rows, f"Divergence from the dense model, {NATS}", "nat / 1000", LogNorm(low, largest, clip=True), "Blues",
            lambda row: 1000 * (row.divergence or 0.0), lambda row: nats(row.divergence or 0.0),
            "min" if smallest < low else "neither", False,
        ),
        Heat(
            rows, "Top-1 lost, points", "points", Normalize(0, min(max(most, 1.0), CAP), clip=True), "Oranges",
            lambda row: row.lost or 0.0, points, "max" if most > CAP else "neither", True,
        ),
    )  # fmt: skip


def _legend(figure: Any, maps: Sequence[Heat], missing: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=MISSING, edgecolor=EDGE, hatch="////", label="not measured")] if missing else []
    if any(heat.grey and not row.surely for heat in maps for row in heat.rows if row.divergence is not None):
        handles.append(Patch(facecolor="none", edgecolor="none", label="grey, pale: cannot be told from 0 (95 %)"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _places(lines: Sequence[SensitivityLine]) -> list[float]:
    """Height of every line from the top; parts stand apart."""
    found: list[float] = []
    for number, line in enumerate(lines):
        apart = GAP if number and lines[number - 1].part != line.part else 0.0
        found.append(found[-1] + 1 + apart if found else 0.0)
    return found


def draw_heat(panel: Any, heat: Heat) -> bool:
    """Draws the map with its scale; whether there was a part of a block that was not measured."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import StrMethodFormatter

    lines, blocks = sensitivity_lines(heat.rows), sensitivity_blocks(heat.rows)
    places, have = _places(lines), {(row.part, row.block) for row in heat.rows}
    shades: Any = ScalarMappable(heat.norm, heat.colours)
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
            unsure = heat.grey and not row.surely
            colour = shades.to_rgba(0.0 if unsure else heat.value(row))
            cell = Rectangle((left, top), width, 1, facecolor=colour, edgecolor="none", linewidth=1.0)
            tip(cell, [_told(line, row)])
            panel.add_patch(cell)
            ink = UNSURE if unsure else ink_on(colour)
            panel.text(left + width / 2, top + 0.52, heat.text(row), ha="center", va="center", fontsize=7, color=ink)
    panel.set_xlim(0, columns)
    panel.set_ylim(places[-1] + 1 if places else 1, 0)
    panel.set_xticks([i + 0.5 for i in range(len(blocks))], [str(b) for b in blocks])
    panel.set_yticks([top + 0.5 for top in places], [line.label for line in lines])
    panel.tick_params(length=0, labelsize=8)
    panel.spines[:].set_visible(False)
    panel.set_title(heat.label, fontsize=9, loc="left")
    aspect = max(6, 3.2 * heat.height)
    bar = panel.figure.colorbar(shades, ax=panel, extend=heat.extend, pad=0.01, fraction=0.05, aspect=aspect)
    bar.set_label(heat.unit, fontsize=8)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return missing


def _told(line: SensitivityLine, row: SensitivityRow) -> str:
    """What is known of one cell, in a sentence."""
    where = "all blocks" if row.block is None else f"block {row.block}"
    lost = "" if row.lost is None else f", {row.lost:+.2f} ± {Z95 * (row.error or 0.0):.2f} points of top-1 lost"
    saved = f", {row.saved['macs']:.2%} of the MACs saved" if "macs" in row.saved else ""
    return f"{line.label}, {where}: {nats(row.divergence or 0.0)} {NATS}{lost}{saved}"
