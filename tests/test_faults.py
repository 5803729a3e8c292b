"""kill -9 at random moments: nothing half-written is ever loadable, and the run that goes on gives the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import faults
from conftest import environment


def killed(kind: str, seeds: int, folder: Path) -> dict[str, Any]:
    """What `faults` tells of runs of this kind."""
    line = [sys.executable, faults.__file__, kind, str(seeds), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(kind: str, seeds: int, folder: Path) -> None:
    told = killed(kind, seeds, folder)
    assert told["wanted"] and len(told["rows"]) == seeds
    assert any(row["killed"] for row in told["rows"])
    for row in told["rows"]:
        assert set(row["all"].values()) <= set(told["wanted"]), row  # a whole model, or nothing
        assert row["after"] == told["wanted"], row
        assert not [name for name in row["beside"] if name.startswith(".")], row  # what was left has been removed


def test_a_prune_that_is_killed_goes_on_to_the_same_model(tmp_path: Path) -> None:
    check("prune", 2, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["prune", "masks", "search"])
def test_twenty_that_are_killed(kind: str, tmp_path: Path) -> None:
    check(kind, 20, tmp_path)


@pytest.mark.parametrize("seeds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_there_is_always_a_whole_model_where_one_is_replaced(seeds: int, tmp_path: Path) -> None:
    told = killed("save", seeds, tmp_path)
    assert 2 * [row["killed"] for row in told["rows"]].count(True) >= seeds  # the last ones may have ended before
    either = set(told["known"])
    assert len(either) == 2 and len(told["wanted"]) == 1 and set(told["wanted"]) < either
    for row in told["rows"]:
        assert set(row["all"].values()) <= either, row  # one of the two as a whole, wherever something loads
        assert len(row["open"]) == 1 or not row["all"], row  # none only before the first one was there
        assert row["after"] == told["wanted"] and row["beside"] == ["out", "out.begun"], row
