"""Measurements: accuracy by hand, turns of the timing, memory of known tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from vitprune.data import open_data
from vitprune.errors import DataError, VitpruneError
from vitprune.evaluate import accuracy, file_size, latency, peak_memory
from vitprune.evaluate.accuracy import wilson
from vitprune.models import load


class Table(nn.Module):
    """Returns the image itself as the class scores."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, K) -> {"logits": (B, K)}."""
        return {"logits": x}


def scores(rows: int, classes: int) -> Tensor:
    """Row i: class 0 scores highest, then 1, 2, ..."""
    return torch.arange(classes, 0, -1.0).repeat(rows, 1)


def test_accuracy_by_hand() -> None:
    batches = [(scores(3, 8), torch.tensor([0, 1, 4])), (scores(2, 8), torch.tensor([5, 0]))]
    model = Table().train()
    result = accuracy(model, batches)
    assert (result.top1, result.top5, result.n) == (0.4, 0.8, 5)
    assert model.training
    assert json.loads(json.dumps(result.to_json()))["ci95"] == list(result.ci95)
    assert accuracy(model, [(scores(2, 3), torch.tensor([1, 2]))]).top5 == 1.0


def test_wilson_interval() -> None:
    low, high = wilson(81, 263)  # worked example of Newcombe, Statistics in Medicine 17 (1998), method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)


def test_accuracy_refuses_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="at least one image"):
        accuracy(Table(), [])
    with pytest.raises(DataError, match="a class 9, but the model's head has 8 classes"):
        accuracy(Table(), [(scores(1, 8), torch.tensor([9]))])


def test_shipped_model_on_shipped_sample() -> None:
    loaded = load("shipped:fmnist-vit")
    data = open_data("fashion-mnist-sample", loaded.preprocessing, num_classes=loaded.num_classes)
    assert data.test is not None
    result = accuracy(loaded.model, data.test)
    assert result.n == 1000 and result.top1 >= 0.92


class Recorder(nn.Module):
    """Notes who was called, with which batch and how many threads."""

    def __init__(self, name: str, log: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        assert not self.training and not torch.is_grad_enabled()
        self.log.append((self.name, len(x), torch.get_num_threads()))
        return x


def test_latency_takes_turns() -> None:
    log: list[tuple[str, int, int]] = []
    models = {"dense": Recorder("dense", log), "pruned": Recorder("pruned", log).train()}
    before = torch.get_num_threads()
    rows = latency(models, torch.zeros(2, 1, 4, 4), batch_sizes=(1, 3), threads=1, warmup=1, repeats=4)
    both = ["dense", "pruned"]
    assert log == [(n, b, 1) for b in (1, 3) for turn in range(5) for n in (both[::-1] if turn % 2 else both)]
    assert [(r.name, r.batch) for r in rows] == [("dense", 1), ("pruned", 1), ("dense", 3), ("pruned", 3)]
    assert all(0 < r.p10_ms <= r.median_ms <= r.p90_ms for r in rows)
    assert rows[0].threads == 1 and rows[0].dtype == "float32" and rows[0].repeats == 4
    assert torch.get_num_threads() == before and models["pruned"].training


def test_latency_sees_the_difference() -> None:
    fast, slow = nn.Linear(64, 64), nn.Sequential(*(nn.Linear(64, 64) for _ in range(60)))
    rows = latency({"fast": fast, "slow": slow}, torch.zeros(1, 64), batch_sizes=(8,), repeats=15)
    assert rows[0].median_ms < rows[1].median_ms


def test_latency_refuses_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VitpruneError, match="positive numbers.*repeats=0"):
        latency({}, torch.zeros(1), repeats=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VitpruneError, match="no CUDA device"):
        latency({}, torch.zeros(1), device="cuda")
    with pytest.raises(VitpruneError, match="no CUDA device"):
        peak_memory(nn.Identity(), torch.zeros(1), "cuda")


def test_peak_memory_by_hand() -> None:
    model = nn.Sequential(nn.Linear(256, 1024, bias=False), nn.GELU(), nn.Linear(1024, 8, bias=False)).train()
    result = peak_memory(model, torch.zeros(64, 256))
    weights = 4 * (256 * 1024 + 1024 * 8)
    assert result.weights_mib * 2**20 == weights
    # at the worst moment the hidden units before and after GELU are both there
    assert result.mib * 2**20 == pytest.approx(weights + 2 * 64 * 1024 * 4, rel=0.05)
    assert "allocator" in result.method and model.training


def test_file_size(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "sub" / "b").write_bytes(b"12345")
    assert file_size(tmp_path / "a") == 3 and file_size(tmp_path) == 8
    with pytest.raises(VitpruneError, match="no file or folder"):
        file_size(tmp_path / "c")


def test_a_measured_model_can_be_trained() -> None:
    """A measurement must leave nothing unfit for training in a library's caches; BEiT keeps its position index."""
    config = transformers.BeitConfig(
        image_size=36,  # a size that no other test has filled the cache for
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        use_relative_position_bias=True,
    )
    model, images = transformers.BeitForImageClassification(config), torch.randn(2, 3, 36, 36)
    accuracy(model, [(images, torch.zeros(2, dtype=torch.long))])
    latency({"model": model}, images, batch_sizes=(1,), warmup=0, repeats=1)
    peak_memory(model, images)
    model.train()(images).logits.square().mean().backward()
    grads = [p.grad for n, p in model.named_parameters() if "relative_position" in n]
    assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)
