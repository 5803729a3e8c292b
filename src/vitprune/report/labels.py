"""Names beside marks, where they lie on no other mark or name if there is such a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLACES = ((6, -11), (-6, 4), (6, 4), (-6, -11), (6, -21), (-6, -21), (6, -31))  # in points, tried in turn
SIZE = 7  # of the letters, in points
WIDTH = 4.1 / SIZE  # of one letter, in sizes


@dataclass(frozen=True, slots=True)
class Label:
    """A text for the mark at (x, y)."""

    x: float
    y: float
    text: str
    places: Sequence[tuple[int, int]] = PLACES


def write_labels(axes: Any, labels: Sequence[Label], colour: str, *, size: float = SIZE, halo: bool = False) -> None:
    """Writes them; the figure has been laid out before, so that places are known. halo: white around the letters."""
    from matplotlib.patheffects import withStroke

    scale = 72 / axes.figure.dpi  # points per pixel
    spots = [axes.transData.transform((one.x, one.y)) * scale for one in labels]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
    for one, (x, y) in sorted(zip(labels, spots, strict=True), key=lambda pair: tuple(pair[1])):
        width = WIDTH * size * len(one.text)
        boxes = []
        for right, up in one.places:
            left = x + right if right > 0 else x + right - width
            boxes.append(((right, up), (left, y + up, left + width, y + up + size + 1)))
        free = [pair for pair in boxes if not any(_overlap(pair[1], other) for other in taken)]
        (right, up), box = (free or boxes)[0]
        taken.append(box)
        note = axes.annotate(
            one.text, (one.x, one.y), (right, up), textcoords="offset points", fontsize=size, color=colour,
            ha="left" if right > 0 else "right", zorder=2.5,
        )  # fmt: skip
        if halo:
            note.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
        note.set_in_layout(False)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
