"""Numbers by epoch or by block, for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitprune.report.palette import MARKS, SERIES
from vitprune.report.panel import Panel, blank, dress, entry, key
from vitprune.report.svg import tip


@dataclass(frozen=True, slots=True)
class Curve:
    """A number by epoch or block."""

    name: str
    at: tuple[int, ...]  # epochs from 1, with 0 before training; or blocks
    values: tuple[float, ...]


def curve_panel(name: str, title: str, unit: str, curves: Sequence[Curve], alt: str, below: str = "epoch") -> Panel:
    """The picture: a line per curve."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = blank()
    dress(axes, f"{title}, {unit}" if unit else title, below)
    for place, curve in enumerate(curves):
        colour, mark = SERIES[place % len(SERIES)], MARKS[place // len(SERIES) % len(MARKS)]
        (line,) = axes.plot(
            curve.at, curve.values, color=colour, marker=mark, markersize=4, linewidth=1.4, label=entry(curve.name)
        )
        texts = [
            f"{curve.name}, {below} {e}: {v:.4g} {unit}".rstrip() for e, v in zip(curve.at, curve.values, strict=True)
        ]
        tip(line, texts)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.08, y=0.1)
    key(axes)
    return Panel(name, alt, figure)
