"""What the tests of whole commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitprune

TINY = "timm:vit_tiny_patch16_224?img_size=16&patch_size=4&in_chans=3&embed_dim=48&depth=2&num_heads=3&num_classes=3"


def environment(**more: str) -> dict[str, str]:
    """Of a process of its own that runs this package."""
    own = {"PYTHONPATH": str(Path(vitprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


@dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., Outcome]:
    """Runs `vitprune ARGUMENTS` in this process, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        from vitprune.cli import main

        monkeypatch.setattr(sys, "argv", ["vitprune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        got = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), got.out, got.err)

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Three classes of 16 noisy 20x20 colour images in train/ and 6 in val/; the class is the bright channel."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root
