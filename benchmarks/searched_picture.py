"""What searches found: the share of every kind that stays in every block, a panel per kind and a line per search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitprune.trace.graph import Graph

NAMES = {"qk": "query/key dims", "v": "value dims", "mlp": "MLP hidden units", "residual": "residual width"}


@dataclass(frozen=True, slots=True)
class Line:
    """One search's result over its seeds."""

    name: str
    sizes: tuple[Mapping[str, int], ...]  # per seed, of all groups


def shares(graph: Graph, kind: str, line: Line) -> np.ndarray:
    """(seeds, groups of the kind): the shares of their sizes that stay, in the model's order."""
    groups = [g for g in graph.groups if g.kind == kind]
    return np.array([[sizes[g.name] / g.size for g in groups] for sizes in line.sizes])


def draw(graph: Graph, lines: Sequence[Line], path: Path) -> None:
    """Writes the picture: means over seeds, with their smallest and largest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    kinds = [k for k in NAMES if any((shares(graph, k, line) < 1).any() for line in lines)]
    figure = Figure(figsize=(3.4 * len(kinds), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for number, line in enumerate(lines):
            found = shares(graph, kind, line)
            at = np.arange(found.shape[1]) + 0.12 * (number - (len(lines) - 1) / 2)
            middle = found.mean(axis=0)
            spread = np.stack([middle - found.min(axis=0), found.max(axis=0) - middle])
            panel.errorbar(at, middle, spread, marker="o", markersize=4, capsize=2, linewidth=1.2, label=line.name)
        panel.set_title(NAMES[kind], loc="left", fontsize=10)
        panel.set_ylim(0, 1.05)
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if kind == "residual":
            panel.set_xticks([0], ["whole model"])
            panel.set_xlim(-1, 1)
        else:
            panel.set_xlabel("block")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("stays")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(lines)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
