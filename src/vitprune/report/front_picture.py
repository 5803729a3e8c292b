"""A picture of a front: top-1 against each cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.report.drawn import save_figure
from vitprune.report.front import COSTS, Front, FrontPoint
from vitprune.report.labels import PLACES, Label, write_labels

BEST, BEATEN, BEFORE, DENSE = "#2f6db5", "#9bb8d9", "#8b929e", "#c2543d"
MARKS = {"pruned": "o", "refitted": "s"}
LABELLED = 12  # points; of more the names would lie on each other
ROOM = 0.08  # of the range, beyond the outermost points
DEAD = 0.5  # of the dense model's top-1, below which a model lies at the lower edge instead of stretching the picture
OF_DEAD = ((6, 4),)


def draw_front(front: Front, path: Path) -> None:
    """Writes a picture (by the suffix of `path`: png, svg, pdf): a panel per cost, in shares of the dense model's.

    Filled: the models that were saved, those of the front joined by a line, with the 95 % interval. Hollow: the same
    before the last step, training or refit. A triangle at the lower edge lies further below: models of less than half
    of the dense model's top-1, and what is worse than all others before the last step.

    Raises StoreError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    points = [p for p in front.finished if p.last.top1 is not None]
    low, high = _range(points)
    figure = Figure(figsize=(12.4, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(COSTS), sharey=True)
    best = front.best()
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        mine = [p for p in points if cost in p.shares()]
        _panel(panel, mine, cost, best[cost], low)
        batch = {p.time.batch for p in mine if p.time is not None}
        unit = f" of batch {batch.pop()}" if cost == "latency" and len(batch) == 1 else ""
        panel.set_xlabel(f"{label}{unit}, share of the dense model's", fontsize=9)
        panel.set_ylim(low, high)
        panel.margins(x=ROOM)
        panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.grid(color="#eceef2", linewidth=0.7)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("top-1 %", fontsize=9)
    handles: dict[str, Any] = {}
    for panel in panels:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        names = list(handles)
        figure.legend(
            list(handles.values()), names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9
        )
    figure.suptitle(front.title, fontsize=11, x=0.01, ha="left")
    figure.draw_without_rendering()  # labels need to know where the panels are
    for panel, cost in zip(panels, COSTS, strict=True):
        _name(panel, [p for p in points if cost in p.shares()], cost, low)
    save_figure(figure, path)


def _percent(point: FrontPoint) -> float:
    return 100 * (point.last.top1 or 0.0)


def _dead(point: FrontPoint) -> bool:
    return (point.last.top1 or 0.0) < DEAD * (point.rows[0].top1 or 0.0)


def _range(points: list[FrontPoint]) -> tuple[float, float]:
    """The range of top-1, in percent, that holds the dense model and all saved ones but the dead."""
    alive = [p for p in points if not _dead(p)]
    found = [p.rows[0].top1 for p in points] + [p.last.top1 for p in alive]
    found += [v for p in alive for v in p.last.ci95 or ()]
    values = [100 * v for v in found if v is not None] or [0.0, 100.0]
    room = max(0.5, ROOM * (max(values) - min(values)))
    return max(0.0, min(values) - room), min(100.0, max(values) + room)


def _panel(panel: Any, points: list[FrontPoint], cost: str, best: tuple[str, ...], low: float) -> None:
    if points and points[0].rows[0].top1 is not None:
        dense = 100 * points[0].rows[0].top1
        panel.axhline(dense, color=DENSE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panel.plot([1], [dense], "*", color=DENSE, markersize=11, zorder=4, linestyle="none", label="dense")
    for stage, mark in MARKS.items():
        earlier = [p for p in points if len(p.rows) > 2 and p.rows[-2].name == stage and not _dead(p)]
        before = [(p.shares()[cost], 100 * p.top1()[stage]) for p in earlier if stage in p.top1()]
        for inside in (True, False):
            part = [(x, max(y, low)) for x, y in before if (y >= low) == inside]
            if part:
                style = {"color": BEFORE, "markerfacecolor": "white", "markersize": 5, "linestyle": "none"}
                label = f"{stage}, before the last step" if inside else f"{stage}, below the picture"
                panel.plot(
                    *zip(*part, strict=True), mark if inside else "v", clip_on=inside, zorder=2.2, label=label, **style
                )
    for p in points:
        if p.last.ci95 is not None and not _dead(p):
            ends = [100 * v for v in p.last.ci95]
            panel.plot([p.shares()[cost]] * 2, ends, color=BEATEN, linewidth=1.0, zorder=2)
    on = [next(p for p in points if p.name == name) for name in best]
    for color, line, label, part_of in (
        (BEST, "-", "front", [p for p in on if not _dead(p)]),
        (BEATEN, "none", "beaten", [p for p in points if p not in on and not _dead(p)]),
    ):
        if part_of:
            xs, ys = [p.shares()[cost] for p in part_of], [_percent(p) for p in part_of]
            panel.plot(xs, ys, "o", color=color, linestyle=line, linewidth=1.2, markersize=6, zorder=3, label=label)
    dead = [p.shares()[cost] for p in points if _dead(p)]
    if dead:
        style = {"color": DENSE, "linestyle": "none", "clip_on": False, "zorder": 3}
        panel.plot(dead, [low] * len(dead), "v", label="dead, below the picture", **style)


def _name(panel: Any, points: list[FrontPoint], cost: str, low: float) -> None:
    """Writes what was asked beside every point."""
    if len(points) > LABELLED:
        return
    labels = []
    for p in points:
        text = f"{p.asked} ({_percent(p):.0f} %)" if _dead(p) else p.asked
        labels.append(Label(p.shares()[cost], max(_percent(p), low), text, OF_DEAD if _dead(p) else PLACES))
    write_labels(panel, labels, "#444444", halo=True)
