"""What the tests of comparisons share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import TINY

METHODS = '[methods.l2]\nmethod = "magnitude-l2"\n[methods.random]\n'


def write(
    path: Path, data: Path, *, seeds: str = "[0]", targets: str = '["macs=0.7"]', more: str = METHODS, **common: Any
) -> Path:
    """A configuration of the tiny ViT; without training, rotation and refit where nothing else is said."""
    given = {"epochs": 0, "calibration": 0} | common
    lines = [f'model = "{TINY}"', f'data = "{data}"', f"seeds = {seeds}", f"targets = {targets}", "[common]"]
    path.write_text("\n".join([*lines, *(f"{k} = {json.dumps(v)}" for k, v in given.items()), more]))
    return path
