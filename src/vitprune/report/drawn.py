"""A picture in a file."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from vitprune.files import write_bytes

LINE = 0.2  # inches of a title's line
LETTERS = 12  # of a title per inch


def head(figure: Any, text: str) -> None:
    """The title of a whole figure; where it takes several lines, the figure grows by them."""
    lines = textwrap.wrap(text, int(LETTERS * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + LINE * (len(lines) - 1))
    figure.suptitle("\n".join(lines), fontsize=10, x=0.01, ha="left")


def save_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Writes matplotlib's figure, in the form that the suffix of `path` names (png, svg, pdf), entirely or not at all.

    Raises StoreError when the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format=path.suffix.removeprefix(".") or "png")
    write_bytes(path, drawn.getvalue())
