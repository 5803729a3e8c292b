"""Words shared by the model sources: options that are not the model's own, nearest names, preprocessing overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitprune.errors import ModelError
from vitprune.models.source import ModelSource
from vitprune.preprocessing import Preprocessing, fit_channels

PREPROCESSING = ("size", "mean", "std", "interpolation", "crop_pct")
RESERVED = ("checkpoint", "pretrained", "weights", "num_classes", "attn", "config", "architecture", *PREPROCESSING)


def own_options(source: ModelSource) -> dict[str, Any]:
    """The options that go to the model's constructor; lists become tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in source.options.items() if k not in RESERVED}


def checkpoint_of(source: ModelSource) -> Path | None:
    """The checkpoint file that the source names."""
    given = source.options.get("checkpoint")
    return None if given is None else Path(str(given)).expanduser()


def classes_of(source: ModelSource, num_classes: int | None) -> int | None:
    """The class count asked for: the argument, else the source's option. Raises ModelError unless 0 or more."""
    asked: Any = num_classes if num_classes is not None else source.options.get("num_classes")
    if asked is not None and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 0):
        raise ModelError(f"num_classes must be a whole number, at least 0, but got {asked!r}")
    return asked


def nearest(name: str, names: Sequence[str]) -> str:
    """Text that lists the closest known names."""
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def overridden(preprocessing: Preprocessing, options: Mapping[str, Any]) -> Preprocessing:
    """`preprocessing` with what the source's options say of it (size=98, mean=[0.5], ...)."""
    changes = {k: options[k] for k in PREPROCESSING if k in options}
    if "size" in changes:
        size = changes["size"]
        changes["size"] = (size, size) if isinstance(size, int) else tuple(size)
    for key in ("mean", "std"):
        if key in changes:
            values = changes[key] if isinstance(changes[key], list | tuple) else [changes[key]]
            changes[key] = fit_channels([float(v) for v in values], preprocessing.channels)
    return replace(preprocessing, **changes)
