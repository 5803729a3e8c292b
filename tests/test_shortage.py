"""What runs out: memory in a probe or a command, a file system that takes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitprune
from formula import Formula, formula_prober
from toys import toy_graph
from vitprune.allocate import Target
from vitprune.cli.run import reported
from vitprune.errors import StoreError
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.search_run import run_search
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.shortage import MemoryShortage, is_shortage, memory_for

HUGE = 2**48  # elements


@pytest.mark.parametrize("make", [lambda: torch.empty(HUGE), lambda: np.empty(HUGE), lambda: bytearray(2**60)])
def test_the_libraries_own_errors_are_known(make: Any) -> None:
    said = r"memory ran out during the test \(.+\); give less"
    with pytest.raises(MemoryShortage, match=said), memory_for("the test", "give less"):
        make()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="must match") as other, memory_for("x", "y"):
        torch.zeros(2) + torch.zeros(3)
    assert not is_shortage(other.value) and not isinstance(other.value, MemoryShortage)


def test_a_probe_that_finds_no_memory_is_named_and_the_others_are_kept() -> None:
    prober = formula_prober(toy_graph(), lambda shares: 1.0)
    prober.probe(prober.analytic(Target("macs", 0.8)), "first")

    class Hungry(Formula):
        def small(self, plan: Any) -> Any:
            return torch.empty(HUGE)

    prober.__class__ = Hungry
    with pytest.raises(MemoryShortage, match=r"during probe 2 \(second\) .*; give smaller batches .* are kept"):
        prober.probe(prober.analytic(Target("macs", 0.5)), "second")
    assert [p.origin for p in prober.probes] == ["first"]


def test_a_command_says_so_in_a_line_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def hungry() -> None:
        torch.empty(HUGE)

    with pytest.raises(SystemExit) as left:
        reported(hungry)()
    assert left.value.code == 12
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out during vitprune hungry (") and said.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folders")
def test_a_place_that_cannot_be_written_is_said_before_the_work() -> None:
    out, data = Path("/proc/vitprune/out"), DataSettings("fashion-mnist-sample", limit=20)
    with pytest.raises(StoreError, match="cannot write /proc/vitprune"):
        run_prune("shipped:fmnist-vit", data, PruneSettings(Target("macs", 0.5)), None, out, device="cpu")
    with pytest.raises(StoreError, match="cannot write /proc/vitprune"):
        run_search("shipped:fmnist-vit", data, SearchSettings(target=Target("macs", 0.5)), None, out, device="cpu")
    origin = vitprune.load_model("shipped:fmnist-vit")
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.5")
    with pytest.raises(StoreError, match="cannot write /proc/vitprune"):
        vitprune.save(out, vitprune.shrink(origin, graph, plan), plan, origin)
