"""Writing a saved folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vitprune.files import new_folder
from vitprune.plan import Plan, PlanError
from vitprune.preprocessing import Preprocessing
from vitprune.store.card import model_card
from vitprune.store.probe import save_probe
from vitprune.store.read import CARD, METRICS, MODEL, PLAN, PREPROCESSOR, PROBE, digest
from vitprune.store.tensors import save_tensors


def save(
    folder: Path | str,
    model: nn.Module,
    plan: Plan,
    preprocessing: Preprocessing,
    *,
    classes: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    card: str | None = None,
    force: bool = False,
) -> Path:
    """The folder, written in one go: weights, plan, preprocessing, metrics, probe and model card, or nothing at all.

    `plan.source` must say how to rebuild the dense skeleton. `card` replaces the generated README.md.

    Raises StoreError when the folder is in use (unless `force` replaces it), the disk is full, or the model's output is
    not finite; PlanError when the plan has no source.
    """
    if not plan.source:
        raise PlanError("plan has no source, so the model could not be rebuilt; set it to a ModelSource's JSON")
    numbers = dict(metrics or {})
    text = plan.to_json()
    target = Path(folder)
    with new_folder(target, force=force, marker=PLAN) as work:
        (work / PLAN).write_text(text, encoding="utf-8")
        fields = preprocessing.to_json() | {"classes": list(classes)}
        (work / PREPROCESSOR).write_text(_json(fields), encoding="utf-8")
        (work / METRICS).write_text(_json(numbers), encoding="utf-8")
        shape = (2, preprocessing.channels, *preprocessing.size)
        save_probe(work / PROBE, model, shape)
        save_tensors(work / MODEL, model, {"format": "pt", "plan": digest(text)})
        readme = card if card is not None else model_card(target.name, plan, preprocessing, numbers, classes)
        (work / CARD).write_text(readme, encoding="utf-8", errors="replace")  # names of folders may be no text
    return target


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
