"""Recipes: published numbers, and a command line that means the same settings."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

import vitprune
from vitprune.cli import options
from vitprune.cli.app import app
from vitprune.cli.options import TRAINING
from vitprune.models import load
from vitprune.recipes import imagenet_deit
from vitprune.recover import TrainError
from vitprune.recover.optimizer import learning_rate


def test_deit_as_published() -> None:
    recipe = imagenet_deit("base")
    s = recipe.settings
    assert (recipe.processes, s.batch_size, recipe.batch, s.epochs, s.lr) == (8, 128, 1024, 300, 1e-3)
    assert (s.optimizer, s.weight_decay, s.warmup_epochs, s.label_smoothing) == ("adamw", 0.05, 5, 0.1)
    assert (s.randaugment, s.mixup, s.cutmix, s.erasing, s.erasing_noise) == (9, 0.8, 1.0, 0.25, True)
    assert (s.ema, s.clip, s.keep) == (0.99996, 0, "last")
    steps = 1_281_167 // 1024
    assert learning_rate(s, 5 * steps, steps) == pytest.approx(1e-3)
    assert learning_rate(s, 300 * steps - 1, steps) == pytest.approx(1e-5, rel=1e-3)
    halved = imagenet_deit("base", processes=2, accumulate=4, batch=512).settings
    assert (halved.batch_size, halved.lr) == (64, 5e-4)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.7), ("small", 22.1), ("base", 86.6)])
def test_the_model_is_deit_with_stochastic_depth(size: str, millions: float) -> None:
    model: Any = load(imagenet_deit(size).model, weights=False).model
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


@pytest.mark.parametrize("processes", [1, 8])
def test_the_command_line_means_the_same(processes: int) -> None:
    recipe = vitprune.recipes.imagenet_deit("small", processes=processes, accumulate=2, seed=3)
    words = shlex.split(recipe.command("/data/image net", "out"))
    at = words.index("vitprune")
    assert words[:2] == ["accelerate", "launch"] and words[at - 1] == "-m"
    assert ("--num_processes" in words[:at]) is (processes > 1)
    command: Any = typer.main.get_command(app)
    train = command.get_command(command.make_context("vitprune", ["train"], resilient_parsing=True), "train")
    given = train.make_context("train", words[at + 2 :]).params
    assert (given["model"], given["data"], given["workers"]) == (recipe.model, "/data/image net", 10)
    own = {name: given[name] for name in TRAINING}
    settings = options.train_settings(given["epochs"], given["set_"], warmup_epochs=given["warmup"], **own)
    assert settings == recipe.settings


def test_what_does_not_divide_is_said() -> None:
    with pytest.raises(TrainError, match="a batch of 1024 must divide among 3 processes and 1 passes"):
        imagenet_deit(processes=3)
    with pytest.raises(TrainError, match="must divide among 0 processes"):
        imagenet_deit(processes=0)
    with pytest.raises(TrainError, match="size must be one of tiny, small, base, but got 'large'"):
        imagenet_deit("large")
