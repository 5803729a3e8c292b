"""The pictures of a study of domains, in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitprune.report.domains import DomainStudy
from vitprune.report.domains_drops import draw_drops
from vitprune.report.domains_picture import draw_domains

PICTURES = {
    "drops": ("Points lost in unseen domains", draw_drops),
    "curves": ("Top-1 in held-out domains", draw_domains),
}


def draw_study(found: DomainStudy, folder: Path, named: Callable[[str, str], str]) -> dict[str, str]:
    """Writes the pictures of every model; what they show -> file, as `domains_markdown` takes it.

    named: what the file of a picture of `PICTURES` and a model is called, such as "drops", "vit" -> "drops-1-vit.png".

    Raises StoreError when a file cannot be written.
    """
    pictures = {}
    for model in found.models:
        for stem, (shown, draw) in PICTURES.items():
            name = pictures[f"{shown} of {model}"] = named(stem, model)
            draw(found, model, folder / name)
    return pictures
