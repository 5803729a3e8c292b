"""A study of domains as JSON and CSV, and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vitprune.report.domains import DomainCell, DomainScores, DomainStudy


def domains_json(found: DomainStudy) -> dict[str, Any]:
    """Everything as JSON values; accuracies and their differences lie in 0..1."""
    return {
        **found.about,
        "title": found.title,
        "held": list(found.held),
        "lines": [asdict(line) for line in found.lines()],
        "selections": [asdict(s) for s in found.selections()],
        "cells": [_cell_json(c) for c in found.cells],
    }


def _cell_json(cell: DomainCell) -> dict[str, Any]:
    left = {"found"} | (set() if cell.error else {"error"})
    fields = {name: value for name, value in asdict(cell).items() if name not in left}
    fields["status"] = cell.status
    if cell.found is not None:
        fields |= {"inside": dict(cell.found.inside), "outside": dict(cell.found.outside)}
        fields |= {"oracle": dict(cell.found.oracle), "images": dict(cell.found.images)}
    return fields


def domains_from_json(fields: Mapping[str, Any]) -> DomainStudy:
    """The study that `domains_json` told. Raises LookupError, TypeError or ValueError for other values."""
    left = ("title", "held", "lines", "selections", "cells")
    about = {name: value for name, value in fields.items() if name not in left}
    return DomainStudy(fields["title"], tuple(fields["held"]), tuple(map(_cell, fields["cells"])), about)


def _cell(fields: Mapping[str, Any]) -> DomainCell:
    own = {name: value for name, value in fields.items() if name != "status"}
    sides = {name: own.pop(name) for name in ("inside", "outside", "oracle", "images") if name in own}
    own["speed"] = {int(batch): value for batch, value in own["speed"].items()}
    return DomainCell(**own, found=DomainScores(**sides) if sides else None)


def domains_csv(found: DomainStudy) -> str:
    """A line per cell and domain; empty where nothing was measured."""
    who = ["model", "form", "score", "over", "ratio", "lr", "held", "seed", "key", "status"]
    columns = [*who, "domain", "part", "top1", "images", "params", "macs", "speed_1", "speed_32"]
    columns += ["epoch_s", "train_s", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for cell in found.cells:
        about: dict[str, Any] = {name: getattr(cell, name) for name in who}
        if cell.found is None:
            writer.writerow(about | {"error": cell.error})
            continue
        about |= {"params": cell.params, "macs": cell.macs, "epoch_s": _or_empty(cell.epoch_s)}
        about["train_s"] = _or_empty(cell.train_s)
        about |= {f"speed_{b}": _or_empty(v) for b, v in cell.speed.items() if b in (1, 32)}
        for part in ("inside", "outside", "oracle"):
            for domain, top1 in getattr(cell.found, part).items():
                images = "" if part == "oracle" else cell.found.images.get(domain, "")
                writer.writerow(about | {"domain": domain, "part": part, "top1": f"{top1:.5f}", "images": images})
    return text.getvalue()


def _or_empty(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
