"""Two processes on the CPU: the result of one with the same global batch, errors and stops that all agree on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sharded
import two_processes
import vitprune
from conftest import TINY, environment
from vitprune import processes
from vitprune.errors import StoreError
from vitprune.pipeline.stages import WorkFolder
from vitprune.pipeline.team import Team
from vitprune.progress import Lines, Silent, make_progress
from vitprune.recover import TrainError

TESTS = Path(two_processes.__file__).parent
PATH = os.pathsep.join([str(Path(vitprune.__file__).parents[1]), str(TESTS), os.environ.get("PYTHONPATH", "")])


def addressed(**more: str) -> dict[str, str]:
    """The environment of processes that meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return environment(PYTHONPATH=PATH, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **more)


def start_two(script: str, *arguments: object) -> list[str]:
    """Runs the script in two processes; what each said."""
    shared = addressed(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    started = [
        subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env={**shared, "RANK": str(n), "LOCAL_RANK": str(n)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0], said[0][1] + said[1][1]
    return [output + errors for output, errors in said]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What two processes left, and what each said."""
    out = tmp_path_factory.mktemp("together")
    return out, start_two(two_processes.__file__, out)


@pytest.mark.parametrize("name", list(two_processes.CASES))
def test_two_processes_are_one_with_the_same_global_batch(together: tuple[Path, list[str]], name: str) -> None:
    found = load_file(together[0] / f"{name}.safetensors")
    model, history = two_processes.run(name, factor=2)
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    start = two_processes.CASES[name][0]().state_dict()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5)
        assert key == "unused" or not torch.allclose(tensor, start[key], atol=1e-4)
    losses = [float(text) for text in (together[0] / f"{name}.txt").read_text().split()]
    assert losses == pytest.approx([e.loss for e in history.epochs], rel=1e-4)


def test_all_stop_at_what_happens_to_one(together: tuple[Path, list[str]]) -> None:
    out, _ = together
    for rank in range(2):
        poisoned, few, stopped, folder = (out / f"errors-{rank}.txt").read_text().splitlines()
        assert poisoned.startswith("the loss became nan at step 9; ")
        assert few.startswith("2 processes need an image each, but there are 1 training images; launch fewer processes")
        assert (stopped, folder) == ("stopped", "epoch-00001-step-0000006")  # all look at the end of the epoch
    found, wanted = load_file(out / "resumed.safetensors"), load_file(out / "plain.safetensors")
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_only_the_main_process_speaks(together: tuple[Path, list[str]]) -> None:
    first, second = together[1]
    assert first.count("epoch 3/3: loss") == len(two_processes.CASES) + 1
    assert "epoch" not in second and "stopped after" not in second
    assert "stopped after step 12" in first


def test_variables_of_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world(), processes.is_main()) == (0, 1, True)
    monkeypatch.setenv("RANK", "3")
    assert processes.is_main()  # a variable of something else
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (processes.rank(), processes.world(), processes.is_main()) == (3, 4, False)
    assert isinstance(make_progress(), Silent)
    monkeypatch.setenv("RANK", "0")
    assert isinstance(make_progress(), Lines)


def test_one_process_is_its_own_team() -> None:
    team, done = Team("cpu"), []
    with team.main_first():
        done.append(1)
    team.wait()
    assert team.main and done == [1]


def test_a_work_folder_that_is_not_shared_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"does not see .*out.work; choose an --out that all processes share"):
        WorkFolder.join(tmp_path / "out")
    made = WorkFolder.open(tmp_path / "out", {})
    assert WorkFolder.join(tmp_path / "out") == made


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "launched with FSDP, but here every process holds the whole model"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "launched with DEEPSPEED"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 gradient accumulation steps; set accumulate instead"),
    ],
)
def test_what_a_launcher_asks_for_in_vain(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=message):
        two_processes.run("plain")


@pytest.mark.slow
def test_a_pruned_model_can_be_sharded_in_ones_own_loop(tmp_path: Path) -> None:
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.5", kinds=("mlp", "heads", "qk", "v"))
    vitprune.save(tmp_path / "small", vitprune.shrink(origin, graph, plan), plan, origin)
    start_two(sharded.__file__, tmp_path / "small", tmp_path / "weights.safetensors")
    found, wanted = load_file(tmp_path / "weights.safetensors"), sharded.steps(tmp_path / "small")
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_command_line_in_two_processes(image_folder: Path, tmp_path: Path) -> None:
    options = ["-m", "vitprune", "prune", TINY, "--data", str(image_folder), "--device", "cpu", "--epochs", "2"]
    options += ["--target", "params=0.6", "--kinds", "mlp,heads", "--feature-weight", "1", "--json"]
    options += ["--set", "keep=last"]  # rounding may decide the best of two epochs on 18 images
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    port = addressed()["MASTER_PORT"]
    launch += ["--main_process_port", port]
    both, one = tmp_path / "both", tmp_path / "one"
    runs = (
        ([*launch, *options, "--batch-size", "8", "--out", str(both)], both),
        ([sys.executable, *options, "--batch-size", "16", "--out", str(one)], one),
    )
    losses = []
    for line, place in runs:
        done = subprocess.run(line, env=addressed(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"rows"') == 1 and done.stderr.count("tracing the model") == 1
        losses.append([epoch["loss"] for epoch in json.loads(done.stdout)["history"]["epochs"]])
        assert place.is_dir() and not place.with_name(f"{place.name}.work").exists()
    assert (both / "plan.json").read_text() == (one / "plan.json").read_text()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # not the weights: the biases of keys, which a softmax does not feel, follow rounding alone
        torch.testing.assert_close(vitprune.load(both)(x), vitprune.load(one)(x), rtol=1e-3, atol=1e-3)
    wrong = [*launch, *options, "--batch-size", "8", "--out", str(tmp_path / "o"), "--limit", "1"]
    done = subprocess.run(wrong, env=addressed(), capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
