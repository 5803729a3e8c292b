"""A small picture for a page: large enough to be read on a phone, several stand side by side on a desk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitprune.report.palette import GRID

WIDTH, HEIGHT = 4.3, 3.1  # inches
LINE = 0.17  # of a legend


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One picture."""

    name: str  # of its files, without suffix; unlike those of the page's other pictures
    alt: str  # what is to be seen, in words
    figure: Any  # matplotlib's

    @property
    def wide(self) -> bool:
        """Whether it stands alone, and is scrolled on a phone."""
        return bool(self.figure.get_figwidth() > 5.4)


def blank(width: float = WIDTH, height: float = HEIGHT) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def dress(axes: Any, title: str, below: str = "", beside: str = "") -> None:
    """Title and labels, a light grid, no frame."""
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def entry(name: str) -> str:
    """The name as a legend takes it: one that begins with an underscore would be left out."""
    return f" {name}" if name.startswith("_") else name


def key(axes: Any) -> None:
    """The legend, below the axes, if there is anything to tell apart; the figure grows by it."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure, columns = axes.figure, 2 if max(map(len, labels)) < 24 else 1
        figure.set_figheight(figure.get_figheight() + LINE * max(0, -(-len(labels) // columns) - 1))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
