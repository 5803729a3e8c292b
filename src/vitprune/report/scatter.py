"""Top-1 against a cost, for a page: a series for every run or method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitprune.report.front_picture import DEAD, ROOM
from vitprune.report.labels import Label, write_labels
from vitprune.report.palette import MARKS, PAPER, RUST, SERIES, SOFT
from vitprune.report.panel import Panel, blank, dress, entry, key
from vitprune.report.svg import page_style, tip

NAMED = 8  # points of a single series; of more the names would lie on each other


@dataclass(frozen=True, slots=True)
class Dot:
    """One model."""

    x: float  # share of the dense model's cost
    y: float  # top-1 in percent
    low: float | None = None  # ends of its interval
    high: float | None = None
    label: str = ""  # written beside it
    told: str = ""  # shown when a pointer rests on it
    best: bool = True  # of the front: filled


@dataclass(frozen=True, slots=True)
class Series:
    """Models that belong together."""

    name: str
    dots: tuple[Dot, ...]
    joined: bool = True  # a line through those of the front


def scatter(name: str, title: str, below: str, series: Sequence[Series], dense: float | None, alt: str) -> Panel:
    """The picture; dense: top-1 of the dense model in percent, at the share 1.

    Models of less than half of it are triangles at the lower edge, which lie further below.
    """
    from matplotlib.ticker import PercentFormatter

    figure, axes = blank()
    dress(axes, title, below, "top-1 %")
    floor_of = DEAD * (dense or 0.0)
    alive = [v for s in series for d in s.dots if d.y >= floor_of for v in (d.y, d.low, d.high) if v is not None]
    values = [*alive, *([] if dense is None else [dense])] or [0.0, 100.0]
    room = max(0.4, ROOM * (max(values) - min(values)))
    low, high = max(0.0, min(values) - room), min(100.0, max(values) + room)
    if dense is not None:
        axes.axhline(dense, color=RUST, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        (star,) = axes.plot([1], [dense], "*", color=RUST, markersize=11, linestyle="none", label="dense", zorder=4)
        tip(star, [f"dense: top-1 {dense:.2f} %"])
    for place, one in enumerate(series):
        colour, mark = SERIES[place % len(SERIES)], MARKS[place // len(SERIES) % len(MARKS)]
        order = sorted(one.dots, key=lambda d: d.x)
        for d in order:
            if d.low is not None and d.high is not None and d.y >= floor_of:
                axes.plot([d.x, d.x], [d.low, d.high], color=colour, alpha=0.45, linewidth=1.2, zorder=2)
        line = [d for d in order if d.best and d.y >= floor_of]
        if one.joined and len(line) > 1:
            axes.plot([d.x for d in line], [d.y for d in line], color=colour, linewidth=1.4, zorder=2.5)
        for number, (part, face, shape) in enumerate(
            (
                ([d for d in order if d.y >= floor_of and d.best], colour, mark),
                ([d for d in order if d.y >= floor_of and not d.best], PAPER, mark),
                ([d for d in order if d.y < floor_of], colour, "v"),
            )
        ):
            if part:
                label = entry(one.name) if not number or not line else None
                (drawn,) = axes.plot(
                    [d.x for d in part], [max(d.y, low) for d in part], shape, color=colour, markerfacecolor=face,
                    markersize=6.5, linestyle="none", clip_on=number < 2, zorder=3, label=label,
                )  # fmt: skip
                tip(drawn, [d.told or f"{d.label}: {d.y:.2f} %" for d in part])
    axes.set_ylim(low, high)
    xs = [d.x for s in series for d in s.dots] + [1.0]
    space = max(0.03, 0.1 * (max(xs) - min(xs)))
    axes.set_xlim(max(0.0, min(xs) - 1.6 * space), max(xs) + 1.6 * space)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    key(axes)
    if len(series) == 1 and len(series[0].dots) <= NAMED:
        with page_style():
            figure.draw_without_rendering()
        write_labels(axes, [Label(d.x, max(d.y, low), d.label) for d in series[0].dots], SOFT, size=8)
    return Panel(name, alt, figure)
