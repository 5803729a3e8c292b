"""A picture of a study of domains: top-1 against what is removed, a panel per held-out domain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vitprune.report.comparison_picture import COLORS, MARKS
from vitprune.report.domains import CONTROL, DENSE, DomainLine, DomainStudy
from vitprune.report.drawn import head, save_figure
from vitprune.report.paired import Spread

COLUMNS = 4  # at most
WIDTH, HEIGHT = 3.4, 2.8  # inches of a panel


def draw_domains(found: DomainStudy, model: str, path: Path) -> None:
    """Writes a picture (png): for one model a panel per held-out domain, their mean, the worst, and in-domain.

    Bars: standard deviation over seeds. All panels have one range.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    lines = [line for line in found.lines() if line.model == model]
    names = [name for held in found.held for name in held.split("+")]
    panels: list[tuple[str, list[tuple[DomainLine, Spread]]]] = []
    for name in names:
        panels.append((name, [(line, line.by_domain[name]) for line in lines if name in line.by_domain]))
    panels.append(("mean", [(line, line.mean) for line in lines if line.mean is not None]))
    panels.append(("worst domain", [(line, line.worst) for line in lines if line.worst is not None]))
    panels.append(("in-domain", [(line, line.inside) for line in lines if line.inside is not None]))
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(columns * WIDTH, rows * HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {n: i for i, n in enumerate(dict.fromkeys(line.line for line in lines if line.ratio))}
    for place, (axis, (title, points)) in enumerate(zip(axes, panels, strict=False)):
        _panel(axis, title, points, styles)
        if place + columns >= len(panels):  # nothing stands below
            axis.tick_params(labelbottom=True)
            axis.set_xlabel(f"{found.of} removed", fontsize=8)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supylabel("top-1 %", fontsize=9)
    labels = axes[0].get_legend_handles_labels()
    if labels[0]:
        figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    head(figure, f"{model}: {found.title}")
    save_figure(figure, path, 120)


def _panel(axis: Any, title: str, points: list[tuple[DomainLine, Spread]], styles: dict[str, int]) -> None:
    dense = next((value.mean for line, value in points if line.line == DENSE), None)
    if dense is not None:
        axis.axhline(100 * dense, color="#9aa1ad", linewidth=0.8, linestyle=(0, (4, 3)), label="dense")
    control = next((value.mean for line, value in points if line.line == CONTROL), None)
    if control is not None:
        axis.axhline(100 * control, color="#9aa1ad", linewidth=0.8, linestyle=":", label="dense, trained on")
    for name, place in styles.items():
        mine = sorted(((line.ratio, v) for line, v in points if line.line == name), key=lambda pair: pair[0])
        if mine:
            axis.errorbar(
                [ratio for ratio, _ in mine], [100 * v.mean for _, v in mine], [100 * (v.sd or 0.0) for _, v in mine],
                color=COLORS[place % len(COLORS)], marker=MARKS[place // len(COLORS) % len(MARKS)],
                linewidth=1.2, markersize=4.5, elinewidth=0.9, capsize=2, label=name,
            )  # fmt: skip
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(color="#eceef2", linewidth=0.7)
    axis.set_axisbelow(True)
