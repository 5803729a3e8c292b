"""Top-1 in unseen domains for a page: a picture for every held-out domain, their mean, the worst, and in-domain."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.report.domains import CONTROL, DENSE, DomainLine, DomainStudy
from vitprune.report.paired import Spread
from vitprune.report.palette import LINE, MARKS, SERIES
from vitprune.report.panel import Panel, blank, dress, key
from vitprune.report.svg import tip

Point = tuple[DomainLine, Spread]


def points_of(found: DomainStudy, model: str) -> dict[str, list[Point]]:
    """Title -> the lines of a model that were measured there, and what they have; titles without any are left out."""
    lines = [line for line in found.lines() if line.model == model]
    names = [name for held in found.held for name in held.split("+")]
    every = {name: [(line, line.by_domain.get(name)) for line in lines] for name in names}
    every |= {"mean of unseen domains": [(line, line.mean) for line in lines]}
    every |= {"worst domain": [(line, line.worst) for line in lines]}
    every |= {"domains trained on": [(line, line.inside) for line in lines]}
    kept = {title: [(line, value) for line, value in some if value is not None] for title, some in every.items()}
    return {title: some for title, some in kept.items() if some}


def domain_panels(found: DomainStudy, model: str, prefix: str) -> list[Panel]:
    """The pictures of a model: top-1 against the share that is removed. Bars: standard deviation over seeds."""
    every = points_of(found, model)
    styles = {n: i for i, n in enumerate(dict.fromkeys(line.line for line in found.lines() if line.ratio))}
    return [
        _panel(f"{prefix}-{number}", title, f"{found.of} removed", points, styles)
        for number, (title, points) in enumerate(every.items(), 1)
    ]


def _panel(name: str, title: str, below: str, points: Sequence[Point], styles: dict[str, int]) -> Panel:
    from matplotlib.ticker import PercentFormatter

    figure, axes = blank()
    dress(axes, f"{title}, top-1 %", below)
    for which, dashes in ((DENSE, (0, (4, 3))), (CONTROL, ":")):
        for line, value in points:
            if line.line == which:
                drawn = axes.axhline(100 * value.mean, color=LINE, linewidth=1.0, linestyle=dashes, label=which)
                tip(drawn, [f"{which}: {100 * value.mean:.2f} %"])
    for line_name, place in styles.items():
        mine = sorted(((line.ratio, v) for line, v in points if line.line == line_name), key=lambda pair: pair[0])
        if not mine:
            continue
        colour, mark = SERIES[place % len(SERIES)], MARKS[place // len(SERIES) % len(MARKS)]
        at, tops = [ratio for ratio, _ in mine], [100 * v.mean for _, v in mine]
        axes.errorbar(at, tops, [100 * (v.sd or 0.0) for _, v in mine], fmt="none", ecolor=colour, elinewidth=0.9)
        (drawn,) = axes.plot(at, tops, color=colour, marker=mark, markersize=4.5, linewidth=1.3, label=line_name)
        tip(drawn, [f"{line_name}, {x:.0%} gone: {y:.2f} %" for x, y in zip(at, tops, strict=True)])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.1, y=0.12)
    key(axes)
    told = "; ".join(f"{line.line} {line.ratio:.0%} {100 * v.mean:.2f} %" for line, v in points[:12])
    return Panel(name, f"Top-1 against the share removed, {title}: {told}", figure)
