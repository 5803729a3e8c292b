"""A picture in a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vitprune.files import write_bytes


def save_figure(figure: Any, path: Path, dpi: int = 130) -> None:
    """Writes matplotlib's figure, in the form that the suffix of `path` names (png, svg, pdf), entirely or not at all.

    Raises StoreError when the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format=path.suffix.removeprefix(".") or "png")
    write_bytes(path, drawn.getvalue())
