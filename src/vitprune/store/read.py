"""What a saved folder says, without its tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitprune.errors import ModelError, StoreError
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing

MODEL, PLAN, PREPROCESSOR = "model.safetensors", "plan.json", "preprocessor.json"
METRICS, PROBE, CARD = "metrics.json", "probe.safetensors", "README.md"
FILES = (MODEL, PLAN, PREPROCESSOR, METRICS, PROBE, CARD)
MAX_JSON = 64 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """A saved folder without its tensors."""

    folder: Path
    plan: Plan
    plan_digest: str  # sha256 of plan.json as it is on disk
    preprocessing: Preprocessing
    classes: tuple[str, ...]  # in the order of the logits; () when unknown
    metrics: dict[str, Any]


def is_saved(path: Path) -> bool:
    """Whether `path` is a folder with a plan in it."""
    return (path / PLAN).is_file()


def read(folder: Path) -> Contents:
    """What the folder holds.

    Raises StoreError when it is no folder of vitprune's, or a file is missing or malformed.
    """
    if not folder.is_dir():
        if folder.is_file():
            raise StoreError(f"{folder} is a file; load takes the folder that vitprune saved (no pickles, no archives)")
        raise StoreError(f"{folder} does not exist; load takes a folder that vitprune saved")
    missing = [name for name in (PLAN, MODEL, PREPROCESSOR, PROBE) if not (folder / name).is_file()]
    if missing:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"))
        also = f"; {', '.join(pickles[:3])} may be pickles, which are never loaded" if pickles else ""
        raise StoreError(f"{folder} is no folder saved by vitprune: it lacks {', '.join(missing)}{also}")
    text = _text(folder / PLAN)
    fields = _object(folder / PREPROCESSOR)
    classes = fields.pop("classes", [])
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        raise StoreError(f"{folder / PREPROCESSOR}: classes must be a list of names")
    try:
        preprocessing = Preprocessing.from_json(fields)
    except ModelError as error:
        raise StoreError(f"{folder / PREPROCESSOR}: {error}") from error
    metrics = _object(folder / METRICS) if (folder / METRICS).is_file() else {}
    return Contents(folder, Plan.from_json(text), digest(text), preprocessing, tuple(classes), metrics)


def digest(text: str) -> str:
    """sha256 of the text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON:
            raise StoreError(f"{path} is larger than {MAX_JSON} bytes; it was not written by vitprune")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (RecursionError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} must hold a JSON object, but holds {type(value).__name__}")
    return value
