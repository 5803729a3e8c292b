"""Runs that are killed or interrupted: what they leave, and what goes on."""

import signal
import subprocess
import sys

import pytest
import torch

import vitprune
from conftest import TINY, environment


def start(*arguments):
    """The command in a process of its own, its progress on a pipe."""
    line = [sys.executable, "-m", "vitprune", *map(str, arguments)]
    return subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=heed_interrupts,
    )


def heed_interrupts():
    """Shells start what runs in the background with SIGINT ignored, which processes inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(process, text):
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_a_killed_run_resumes_and_gives_the_same(image_folder, tmp_path):
    options = ["prune", TINY, "--data", image_folder, "--batch-size", "16", "--device", "cpu", "--epochs", "4"]
    process = start(*options, "--out", tmp_path / "killed")
    wait_for(process, "epoch 2/4:")
    process.kill()
    process.communicate()
    assert [p.name for p in tmp_path.iterdir()] == ["killed.work"]
    process = start(*options, "--out", tmp_path / "killed", "--seed", "1")
    assert "belongs to a run with other settings (" in process.communicate()[1]
    assert process.returncode == 6
    process = start(*options, "--out", tmp_path / "killed")
    output = process.communicate()[1]
    assert process.returncode == 0, output
    assert "going on with the pruned model" in output
    assert "going on after epoch" in output
    process = start(*options, "--out", tmp_path / "straight")
    output = process.communicate()[1]
    assert process.returncode == 0, output
    one, other = (vitprune.load(tmp_path / n).state_dict() for n in ("killed", "straight"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "straight"]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_has_its_exit_code_and_leaves_no_folder(image_folder, tmp_path, sent, code):
    options = ["prune", TINY, "--data", image_folder, "--batch-size", "16", "--device", "cpu", "--epochs", "500"]
    process = start(*options, "--out", tmp_path / "out")
    wait_for(process, "epoch 1/500:")
    process.send_signal(sent)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in output
    assert [p.name for p in tmp_path.iterdir()] == ["out.work"]
