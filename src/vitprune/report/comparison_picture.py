"""A picture of a comparison: top-1 against what was obtained of the targets' metric, a line per method."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from vitprune.report.comparison import Comparison, Summary
from vitprune.report.drawn import save_figure
from vitprune.report.front import COSTS
from vitprune.report.front_picture import DEAD, DENSE, ROOM

COLORS = ("#2f6db5", "#e08a1e", "#3a8f5c", "#7d5ba6", "#8c6d46", "#d06a9c", "#2b9aa0", "#6b7280")
APART = 0.012  # of the dense cost, from first to last method: those that meet the same target would lie on each other
MARKS = ("o", "s", "^", "D", "v", "P")


def draw_comparison(found: Comparison, path: Path) -> None:
    """Writes a picture (png): a line per method.

    Large marks: means, with the standard deviation where there are several seeds; small ones: single seeds. A triangle
    at the lower edge lies further below: less than half of the dense model's top-1.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    measured = [row.top1 for row in found.dense().values() if row.top1 is not None]
    dense = 100 * fmean(measured) if measured else 0.0
    if measured:
        panel.axhline(dense, color=DENSE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panel.plot([1], [dense], "*", color=DENSE, markersize=11, zorder=4, linestyle="none", label="dense")
    shown = [s for s in found.summaries() if s.top1 is not None and found.metric in s.shares]
    low, high = _range(shown, dense, found)
    for place, method in enumerate(found.methods):
        color, mark = COLORS[place % len(COLORS)], MARKS[place // len(COLORS) % len(MARKS)]
        mine = [s for s in shown if s.method == method]
        aside = APART * (place / max(len(found.methods) - 1, 1) - 0.5)
        _line(panel, found, mine, method, (color, mark, aside), (low, DEAD * dense))
    panel.set_ylim(low, high)
    panel.margins(x=ROOM)
    panel.set_xlabel(f"{COSTS[found.metric]}, share of the dense model's", fontsize=9)
    panel.set_ylabel("top-1 %", fontsize=9)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.grid(color="#eceef2", linewidth=0.7)
    panel.set_axisbelow(True)
    if shown:
        panel.legend(frameon=False, fontsize=8, loc="best")
    panel.set_title(found.title, fontsize=11, loc="left")
    save_figure(figure, path)


def _range(shown: list[Summary], dense: float, found: Comparison) -> tuple[float, float]:
    """The range of top-1, in percent, that holds the dense model and all means, spreads and seeds but the dead."""
    values = [dense] if dense else []
    for s in shown:
        assert s.top1 is not None
        middle, sd = 100 * s.top1.mean, 100 * (s.top1.sd or 0.0)
        if middle >= DEAD * dense:
            values += [middle - sd, middle + sd]
            values += [100 * (c.point.last.top1 or 0.0) for c in found.of(s.method, s.asked)]
    values = values or [0.0, 100.0]
    room = max(0.5, ROOM * (max(values) - min(values)))
    return max(0.0, min(values) - room), min(100.0, max(values) + room)


def _line(
    panel: Any,
    found: Comparison,
    mine: list[Summary],
    method: str,
    style: tuple[str, str, float],
    floor: tuple[float, float],
) -> None:
    (color, mark, aside), (low, dead) = style, floor
    order = sorted(mine, key=lambda s: s.shares[found.metric])
    xs = [s.shares[found.metric] + aside for s in order]
    means = [100 * s.top1.mean for s in order if s.top1 is not None]
    spreads = [100 * (s.top1.sd or 0.0) for s in order if s.top1 is not None]
    if not xs:
        return
    panel.errorbar(
        xs, means, spreads, color=color, marker=mark, linewidth=1.3, markersize=6, elinewidth=1.0, capsize=3, zorder=3,
        label=method,
    )  # fmt: skip
    for s in order:
        cells = found.of(s.method, s.asked)
        if len(cells) > 1:
            at = [c.point.shares()[found.metric] + aside for c in cells]
            panel.plot(
                at, [100 * (c.point.last.top1 or 0.0) for c in cells], mark, color=color, alpha=0.35, markersize=3,
                linestyle="none", zorder=2,
            )  # fmt: skip
    below = [x for x, mean in zip(xs, means, strict=True) if mean < dead]
    if below:  # an empty line that is not clipped would bend the layout
        panel.plot(below, [low] * len(below), "v", color=color, markersize=7, clip_on=False, linestyle="none", zorder=3)
