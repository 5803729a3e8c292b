"""Masks in two processes on the CPU: what one process finds with the same global batch, and errors that all raise."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import two_masks
import vitprune
from test_recover_processes import addressed, start_two


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    out = tmp_path_factory.mktemp("masks")
    start_two(two_masks.__file__, out)
    return out


def equal(out: Path, first: str, second: str) -> bool:
    """Whether two runs left the same tensors, bit for bit."""
    a, b = (load_file(out / f"{name}.safetensors") for name in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", list(two_masks.CASES))
def test_two_processes_find_what_one_finds_with_the_same_global_batch(together: Path, name: str) -> None:
    assert equal(together, f"{name}-0", f"{name}-1")
    found = load_file(together / f"{name}-0.safetensors")
    told = json.loads((together / f"{name}-0.json").read_text())
    result, masks = two_masks.run(two_masks.CASES[name], factor=2)
    wanted = two_masks.facts(result)
    assert float(masks["alpha"].std()) > 0.01 and result.plan.pruned()
    assert told["plan"]["groups"] == wanted["plan"]["groups"]
    for key, tensor in masks.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)
    for key, tensor in result.model.state_dict().items():
        gap = (found[key] - tensor).abs()
        if not key.endswith("qkv.bias"):  # keys' biases, which a softmax does not feel, follow rounding alone
            assert float((gap > 1e-4).float().mean()) < 0.005  # so do single weights: AdamW divides by what they feel
            assert float(gap.max()) < 2e-3
    for phase, epochs in wanted["epochs"].items():
        for mine, theirs in zip(epochs, told["epochs"][phase], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_stopped_search_goes_on_bit_by_bit_in_all_processes(together: Path) -> None:
    for rank in range(2):
        assert equal(together, f"hard-concrete-{rank}", f"resumed-{rank}")


def test_gradients_may_be_views_of_buckets(together: Path) -> None:
    """The masks scale them in place."""
    assert equal(together, "target-0", "views-0")


def test_all_processes_raise_the_same(together: Path) -> None:
    first, second = ((together / f"errors-{rank}.txt").read_text() for rank in range(2))
    assert first == second
    parted, poisoned, changed, few, slow = first.splitlines()
    assert parted.startswith("all processes must end the search with the same plan, but process 1 keeps other units of")
    assert poisoned.startswith("the loss became nan at step 6; ")
    assert [p.name for p in (together / "poisoned" / "search").iterdir()] == ["epoch-00000"]
    assert "other settings of masks (mask_lr, search.lr); give another folder" in changed
    assert few.startswith("2 processes need an image each, but there are 1 training images; launch fewer processes")
    assert slow.startswith("target latency=0.001x cannot be reached: the smallest reachable with kinds")


@pytest.mark.slow
def test_the_command_line_in_two_processes_goes_on_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    line += ["--master_port", addressed()["MASTER_PORT"], "-m", "vitprune", "prune", "shipped:fmnist-vit"]
    line += ["--data", "fashion-mnist-sample", "--limit", "256", "--batch-size", "32", "--device", "cpu"]
    line += ["--method", "masks", "--target", "macs=0.6", "--mask-epochs", "4", "--mask-lr", "0.1", "--epochs", "1"]
    line += ["--amp", "no", "--json", "--out", str(out)]
    search = tmp_path / "out.work" / "masks" / "search"
    process = psutil.Popen(line, env=addressed(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 200
    while not any(search.glob("epoch-*")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    for started in (*process.children(recursive=True), process):  # the launcher gives each a session of its own
        started.kill()
    said = process.communicate()[0]
    assert any(search.glob("epoch-*")) and not out.exists(), said
    done = subprocess.run(line, env=addressed(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "going on after epoch " in done.stderr and done.stderr.count("obtained macs=") == 1
    told = json.loads(done.stdout)
    assert [row["name"] for row in told["rows"] if row["name"] != "refitted"] == ["dense", "pruned", "fine-tuned"]
    assert 0.55 < told["obtained"]["macs"]["ratio"] <= 0.6
    small = vitprune.load(out)
    assert sum(p.numel() for p in small.parameters()) == told["obtained"]["params"]["value"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
