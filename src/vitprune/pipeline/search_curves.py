"""The files of a search by sensitivity: what was measured of every part."""

from __future__ import annotations

import json
from pathlib import Path

from vitprune.files import write_text
from vitprune.report import draw_sensitivity, sensitivity_csv, sensitivity_json, sensitivity_markdown
from vitprune.search import Curves

NAME = "sensitivity"
SUFFIXES = (".csv", ".json", ".md", ".png")


def write_curves(folder: Path, curves: Curves, title: str, images: int) -> None:
    """Writes the rows as CSV and JSON, the tables as a page, and the heat map. Raises StoreError when it cannot."""
    rows = curves.rows()
    write_text(folder / f"{NAME}.csv", sensitivity_csv(rows))
    write_text(folder / f"{NAME}.json", json.dumps(sensitivity_json(rows), indent=1))
    write_text(folder / f"{NAME}.md", sensitivity_markdown(rows, title, images=images, picture=f"{NAME}.png"))
    draw_sensitivity(rows, folder / f"{NAME}.png", title)
