"""What pruning did to single classes: rows first, pictures after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitprune.report.answers import Answers
from vitprune.report.palette import BLUE, LINE, PAPER, RUST, SOFT, ink_on
from vitprune.report.panel import Panel, blank, dress
from vitprune.report.svg import tip
from vitprune.report.words import printable

SHOWN = 10  # classes at either end, where there are more than twice as many
MATRIX = 14  # classes at most of which all pairs are drawn
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of the test images."""

    name: str
    images: int
    dense: float  # share of its images that the dense model gets right, 0..1
    pruned: float

    @property
    def change(self) -> float:
        """Points gained; below 0: lost."""
        return 100 * (self.pruned - self.dense)


@dataclass(frozen=True, slots=True)
class PairRow:
    """Images of one class that are taken for another."""

    label: str
    predicted: str
    dense: int  # images
    pruned: int


def same_images(dense: Answers, pruned: Answers) -> bool:
    """Whether both are of the same images in the same order."""
    return (dense.images, dense.n, dense.labels) == (pruned.images, pruned.n, pruned.labels)


def confusion(answers: Answers, classes: int) -> Counts:
    """(classes, classes): images by their own class and the one predicted."""
    labels, predicted = answers.arrays()
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_names(dense: Answers, pruned: Answers, names: Sequence[str]) -> list[str]:
    """Names of all classes that occur; those without a name are numbers."""
    largest = max(int(part.max(initial=0)) for a in (dense, pruned) for part in a.arrays())
    return [printable(names[i]) if i < len(names) else f"class {i}" for i in range(max(largest + 1, len(names)))]


def class_rows(dense: Answers, pruned: Answers, names: Sequence[str]) -> list[ClassRow]:
    """A row per class that has images; what lost most comes first."""
    named = class_names(dense, pruned, names)
    labels, before = dense.arrays()
    after = pruned.arrays()[1]
    images = np.bincount(labels, minlength=len(named))
    right = [np.bincount(labels[answer == labels], minlength=len(named)) for answer in (before, after)]
    rows = [
        ClassRow(named[i], int(n), float(right[0][i] / n), float(right[1][i] / n)) for i, n in enumerate(images) if n
    ]
    return sorted(rows, key=lambda r: (r.change, r.name))


def pair_rows(dense: Answers, pruned: Answers, names: Sequence[str], most: int = 10) -> list[PairRow]:
    """The mistakes that became more frequent, those first that grew most."""
    named = class_names(dense, pruned, names)
    before, after = confusion(dense, len(named)), confusion(pruned, len(named))
    grown = after - before
    np.fill_diagonal(grown, 0)
    order = np.argsort(-grown, axis=None, kind="stable")[:most]
    places = [divmod(int(at), len(named)) for at in order]
    return [PairRow(named[i], named[j], int(before[i, j]), int(after[i, j])) for i, j in places if grown[i, j] > 0]


def class_panel(rows: Sequence[ClassRow]) -> Panel:
    """From the dense model's share to the pruned one's, a line per class; of many only those at both ends."""
    from matplotlib.ticker import PercentFormatter

    many = len(rows) > 2 * SHOWN
    shown = [*rows[:SHOWN], *rows[-SHOWN:]] if many else list(rows)
    figure, axes = blank(4.3, 1.1 + 0.21 * len(shown))
    dress(axes, "Right answers by class")
    places = [i + (0.8 if many and i >= SHOWN else 0.0) for i in range(len(shown))]
    for at, r in zip(places, shown, strict=True):
        colour = RUST if r.change < 0 else BLUE if r.change > 0 else SOFT
        axes.plot([r.dense, r.pruned], [at, at], color=colour, linewidth=2.4, solid_capstyle="round", zorder=2)
        (end,) = axes.plot([r.pruned], [at], "o", color=colour, markersize=6, zorder=3)
        (start,) = axes.plot([r.dense], [at], "o", color=LINE, markerfacecolor=PAPER, markersize=5, zorder=2.5)
        for drawn in (start, end):
            told = f"{r.name}: {r.dense:.1%} to {r.pruned:.1%} of {r.images} images, {r.change:+.1f} points"
            tip(drawn, [told])
    axes.set_yticks(places, [r.name if len(r.name) <= 22 else r.name[:21] + "…" for r in shown], parse_math=False)
    axes.set_ylim(max(places, default=0) + 0.7, -0.7)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("hollow: dense; filled: pruned")
    axes.tick_params(axis="y", length=0)
    alt = f"Share of right answers by class, dense and pruned; {_ends(rows)}"
    return Panel("classes", alt, figure)


def _ends(rows: Sequence[ClassRow]) -> str:
    if not rows:
        return "no classes"
    return (
        f"most lost: {rows[0].name} {rows[0].change:+.1f} points; most gained: {rows[-1].name} {rows[-1].change:+.1f}"
    )


def confusion_panel(dense: Answers, pruned: Answers, names: Sequence[str]) -> Panel | None:
    """How many more images of one class (line) are given another (column) after pruning; None for many classes.

    Red is worse: more mistakes, fewer right answers.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.patches import Rectangle

    named = class_names(dense, pruned, names)
    if len(named) > MATRIX:
        return None
    before, after = confusion(dense, len(named)), confusion(pruned, len(named))
    change = after - before
    most = max(1, int(np.abs(change).max()))
    shades: Any = ScalarMappable(TwoSlopeNorm(0, -most, most), "RdBu_r")  # red: worse
    side = max(3.2, 0.27 * len(named) + 1.5)
    figure, axes = blank(side + 0.4, side)
    for i, j in np.ndindex(change.shape):
        colour = shades.to_rgba(int(-change[i, j] if i == j else change[i, j]))
        cell = Rectangle((j, i), 1, 1, facecolor=colour, edgecolor="none")
        told = f"{named[i]} taken for {named[j]}" if i != j else f"{named[i]} recognised"
        tip(cell, [f"{told}: {before[i, j]} images dense, {after[i, j]} pruned ({change[i, j]:+d})"])
        axes.add_patch(cell)
        if change[i, j]:
            ink = ink_on(colour)
            axes.text(j + 0.5, i + 0.52, f"{change[i, j]:+d}", ha="center", va="center", fontsize=7, color=ink)
    short = [n if len(n) <= 14 else n[:13] + "…" for n in named]
    axes.set_xlim(0, len(named))
    axes.set_ylim(len(named), 0)
    middle = [i + 0.5 for i in range(len(named))]
    axes.set_xticks(middle, short, rotation=90, parse_math=False)
    axes.set_yticks(middle, short, parse_math=False)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title("Change of the confusion matrix", fontsize=10, loc="left", fontweight="bold")
    axes.set_xlabel("predicted (red: worse)")
    axes.set_ylabel("class of the image")
    grew = int(change[~np.eye(len(named), dtype=bool)].clip(0).sum())
    alt = f"Confusion matrix, pruned minus dense, in images; mistakes that grew add up to {grew}"
    return Panel("confusion", alt, figure)
