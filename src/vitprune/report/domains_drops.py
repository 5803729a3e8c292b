"""Pictures of what pruning costs in unseen domains, beside what it costs in those that were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitprune.report.domains import DomainLine, DomainStudy
from vitprune.report.domains_breaks import LIMIT, too_much
from vitprune.report.drawn import head, save_figure
from vitprune.report.paired import Interval
from vitprune.report.palette import BLUE, LINE, RUST, SOFT
from vitprune.report.panel import Panel, blank, dress, entry, key
from vitprune.report.svg import tip
from vitprune.report.words import plus_minus

ROW, FRAME = 0.24, 1.25  # inches of a line, and of title, axis and legend
WIDTH = 5.4  # inches of a panel with its lines' names
NARROWEST = 7.0  # inches of a picture: the legend has to fit
BELOW = "points of top-1 lost against the dense model"


def drops_of(found: DomainStudy, model: str) -> dict[float, list[DomainLine]]:
    """Share removed -> a model's lines that a dense model stands beside; the dense one that trained on comes first."""
    lines = [line for line in found.lines() if line.model == model and (line.drop_inside or line.drop_by_domain)]
    control = [line for line in lines if not line.ratio]
    ratios = sorted({line.ratio for line in lines if line.ratio})
    return {ratio: control + [line for line in lines if line.ratio == ratio] for ratio in ratios}


def draw_drops(found: DomainStudy, model: str, path: Path) -> None:
    """Writes a picture (png): for one model a panel per share removed, a line per form and score.

    Bars: standard error of the differences by seed. Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = drops_of(found, model)
    most = max(map(len, every.values()), default=1)
    width = max(NARROWEST, 1.4 + 3.3 * len(every))
    figure = Figure(figsize=(width, FRAME + ROW * most), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, max(1, len(every)), squeeze=False)[0]
    for axes, (ratio, lines) in zip(grid, every.items(), strict=False):
        _rows(axes, lines)
        dress(axes, _title(found, ratio), BELOW)
        axes.xaxis.label.set_size(8)
        axes.tick_params(labelsize=8)
        if axes is not grid[0] and _names(lines) == _names(next(iter(every.values()))):
            axes.set_yticklabels([])
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    head(figure, f"{model}: {found.title}")
    save_figure(figure, path, 120)


def drop_panels(found: DomainStudy, model: str, prefix: str) -> list[Panel]:
    """The same for a page, a picture for every share."""
    panels = []
    for number, (ratio, lines) in enumerate(drops_of(found, model).items(), 1):
        figure, axes = blank(WIDTH, FRAME + ROW * len(lines))
        _rows(axes, lines)
        dress(axes, _title(found, ratio), BELOW)
        key(axes)
        told = "; ".join(f"{line.line} {_told(line.drop_outside)}, {_told(line.drop_inside)}" for line in lines[:12])
        alt = f"Points lost in unseen domains, in those trained on: {told}"
        panels.append(Panel(f"{prefix}-{number}", alt, figure))
    return panels


def _title(found: DomainStudy, ratio: float) -> str:
    return f"{ratio:.0%} of the {found.of} gone"


def _names(lines: Sequence[DomainLine]) -> list[str]:
    return [line.line for line in lines]


def _told(drop: Interval | None) -> str:
    return "not known" if drop is None else plus_minus(drop.mean, drop.se, 1)


def _rows(axes: Any, lines: Sequence[DomainLine]) -> None:
    """A row per line, from the top: every unseen domain, their mean, and the mean of those trained on."""
    axes.axvline(0, color=LINE, linewidth=1.0)
    axes.axvline(100 * LIMIT, color=LINE, linewidth=0.8, linestyle=(0, (4, 3)))
    every = [(y, name, drop) for y, line in enumerate(lines) for name, drop in line.drop_by_domain.items()]
    _marks(axes, every, "an unseen domain", SOFT, marker="|", markersize=7)
    inside = [(y, "domains trained on", x.drop_inside) for y, x in enumerate(lines) if x.drop_inside is not None]
    _marks(axes, inside, "mean of the domains trained on", RUST, marker="D", markersize=5, markerfacecolor="none")
    mean = [(y, "unseen domains", x.drop_outside) for y, x in enumerate(lines) if x.drop_outside is not None]
    _marks(axes, mean, "mean of the unseen domains", BLUE, marker="o", markersize=5.5)
    for y, line in enumerate(lines):
        _name_worst(axes, y, line.drop_by_domain)
    axes.set_yticks(range(len(lines)), [entry(line.line) for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.7)
    axes.margins(x=0.12)


def _marks(axes: Any, drops: Sequence[tuple[int, str, Interval]], label: str, colour: str, **style: Any) -> None:
    """One kind of mark, with its standard errors but for single domains, whose bars would hide each other."""
    if not drops:
        return
    at = [100 * drop.mean for _, _, drop in drops]
    rows = [y for y, _, _ in drops]
    if style["marker"] != "|":
        wide = [100 * (drop.se or 0.0) for _, _, drop in drops]
        axes.errorbar(at, rows, xerr=wide, fmt="none", ecolor=colour, elinewidth=1.0)
    (drawn,) = axes.plot(at, rows, color=colour, linestyle="none", label=label, **style)
    tip(drawn, [f"{name}: {_told(drop)} points lost" for _, name, drop in drops])


def _name_worst(axes: Any, row: int, drops: Mapping[str, Interval]) -> None:
    """Writes the domain's name where most is lost, if it breaks and there are several."""
    if len(drops) < 2:
        return
    name, drop = max(drops.items(), key=lambda pair: pair[1].mean)
    if too_much(drop):
        where = (100 * drop.mean, row)
        axes.annotate(name, where, (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=7, color=SOFT)
