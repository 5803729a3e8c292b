"""Activations on disk or in memory: the same fit, bounded memory."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from matrix import half_plan
from refit_parts import half_of_the_mlp, images
from vitprune.progress import Silent
from vitprune.refit import refit
from vitprune.refit.spool import Spool
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES


def test_disk_and_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["timm/swin_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp", "heads"])
    batches = [images(case.name, n, n) for n in (8, 8, 3, 1)]
    results = []
    for memory in (2**30, 0):
        small = shrink(model, graph, plan, example=case.example(2))
        results.append((refit(model, small, graph, plan, batches, memory=memory), small.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(v, results[1][1][k]) for k, v in results[0][1].items())


class Held(Silent):
    """Progress that counts the bytes of all tensors that are alive after each layer."""

    def __init__(self) -> None:
        self.most = 0

    def advance(self, n: int = 1, **facts: float | str) -> None:
        gc.collect()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _real(t)}
        self.most = max(self.most, sum(storages.values()))


def _real(found: object) -> bool:
    return type(found) in (Tensor, nn.Parameter) and found.layout == torch.strided and found.device.type == "cpu"  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_the_calibration_set() -> None:
    case = CASES["timm/vit_tiny/fused"]
    most = {}
    for count, memory in ((2, 0), (12, 0), (12, 2**30)):
        model, graph, plan, small = half_of_the_mlp(case)
        held = Held()
        refit(model, small, graph, plan, (images(case.name, 32, s) for s in range(count)), progress=held, memory=memory)
        most[count, memory] = held.most
    few, many, unlimited = most.values()
    assert many < 1.1 * few, most
    assert unlimited > many + 8 * 32 * 17 * 4, "what is held without a limit is seen by this count"


def test_a_spool_beyond_its_limit_uses_a_folder_and_cleans_it() -> None:
    with Spool(100) as spool:
        spool.put(0, {"a": torch.ones(10), "b": (torch.zeros(2, 3).T, 7)})
        spool.put(1, {"a": torch.arange(20)})
        assert spool.folder is not None
        found = spool.take(1)
        assert torch.equal(found["a"], torch.arange(20))
        first = spool.take(0)
        assert first["b"][1] == 7 and first["b"][0].shape == (3, 2)
        folder = spool.folder.name
    assert not Path(folder).exists()
