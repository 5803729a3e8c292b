"""A picture of a front: top-1 against each cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.errors import StoreError
from vitprune.report.front import COSTS, Front, FrontPoint

BEST, BEATEN, BEFORE, DENSE = "#2f6db5", "#9bb8d9", "#8b929e", "#c2543d"
MARKS = {"pruned": "o", "refitted": "s"}
LABELLED = 12  # points; of more the names would lie on each other
ROOM = 0.08  # of the range, beyond the outermost points


def draw_front(front: Front, path: Path) -> None:
    """Writes a picture (by the suffix of `path`: png, svg, pdf): a panel per cost, in shares of the dense model's.

    Filled: the models that were saved, those of the front joined by a line, with the 95 % interval. Hollow: the same
    before the last step, training or refit; what lies below all saved models is a triangle at the lower edge.

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
    for panel, (cost, label) in zip(panels, COSTS.items(), strict=True):
        mine = [p for p in points if cost in p.shares()]
        _panel(panel, mine, cost, front.best()[cost], low)
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
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False,
            fontsize=9,
        )  # fmt: skip
    figure.suptitle(front.title, fontsize=11, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _range(points: list[FrontPoint]) -> tuple[float, float]:
    """The range of top-1, in percent, that holds all saved models and the dense one."""
    found = [p.rows[0].top1 for p in points] + [p.last.top1 for p in points]
    found += [v for p in points for v in p.last.ci95 or ()]
    values = [100 * v for v in found if v is not None] or [0.0, 100.0]
    room = max(0.5, ROOM * (max(values) - min(values)))
    return max(0.0, min(values) - room), min(100.0, max(values) + room)


def _panel(panel: Any, points: list[FrontPoint], cost: str, best: tuple[str, ...], low: float) -> None:
    from matplotlib.patheffects import withStroke

    if points and points[0].rows[0].top1 is not None:
        dense = 100 * points[0].rows[0].top1
        panel.axhline(dense, color=DENSE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        panel.plot([1], [dense], "*", color=DENSE, markersize=11, zorder=4, linestyle="none", label="dense")
    for stage, mark in MARKS.items():
        earlier = [p for p in points if len(p.rows) > 2 and p.rows[-2].name == stage and stage in p.top1()]
        before = [(p.shares()[cost], 100 * p.top1()[stage]) for p in earlier]
        for inside in (True, False):
            part = [(x, max(y, low)) for x, y in before if (y >= low) == inside]
            if part:
                style = {"color": BEFORE, "markerfacecolor": "white", "markersize": 5, "linestyle": "none"}
                label = f"{stage}, before the last step" if inside else f"{stage}, below the picture"
                panel.plot(
                    *zip(*part, strict=True), mark if inside else "v", clip_on=inside, zorder=5, label=label, **style
                )
    for p in points:
        x, y = p.shares()[cost], 100 * (p.last.top1 or 0.0)
        if p.last.ci95 is not None:
            panel.plot([x, x], [100 * v for v in p.last.ci95], color=BEATEN, linewidth=1.0, zorder=2)
        if len(points) <= LABELLED:  # a front rises to the right, so there is room below
            text = panel.annotate(p.asked, (x, y), (5, -10), textcoords="offset points", fontsize=7, color="#444444")
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
            text.set_zorder(2.5)
    on = [next(p for p in points if p.name == name) for name in best]
    off = [p for p in points if p not in on]
    for part_of, color, line, label in ((on, BEST, "-", "front"), (off, BEATEN, "none", "beaten")):
        if part_of:
            xs = [p.shares()[cost] for p in part_of]
            ys = [100 * (p.last.top1 or 0.0) for p in part_of]
            panel.plot(xs, ys, "o", color=color, linestyle=line, linewidth=1.2, markersize=6, zorder=3, label=label)
