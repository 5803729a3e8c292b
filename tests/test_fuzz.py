"""A short coverage-guided search for inputs that break a reader (tests/fuzz_readers.py), where atheris is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGETS = ("plan", "preprocessor", "tensors", "idx", "config", "ratios")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris not installed")


def fuzzed(target: str, work: Path) -> tuple[subprocess.CompletedProcess[str], list[bytes]]:
    """What came of 1,500 inputs, or twenty seconds of them, and those that broke something."""
    kept = work / "kept"
    kept.mkdir()
    options = ["-runs=1500", "-max_total_time=20", "-seed=1", "-rss_limit_mb=4000", f"-artifact_prefix={kept}/"]
    command = [sys.executable, str(HERE / "fuzz_readers.py"), target, *options]
    env = {**os.environ, "TMPDIR": str(work)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=env)
    return done, [path.read_bytes() for path in kept.iterdir()]


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_gives_a_value_or_an_error_of_ours(target: str, tmp_path: Path) -> None:
    done, broken = fuzzed(target, tmp_path)
    assert done.returncode == 0 and not broken, (broken, done.stderr[-3000:])
    assert "Done " in done.stderr


def test_a_reader_with_a_fault_is_caught(tmp_path: Path) -> None:
    done, broken = fuzzed("trap", tmp_path)
    assert done.returncode != 0 and "KeyError: 'a fault that is found'" in done.stdout + done.stderr
    assert [content[:1] for content in broken] == [b"{"]
