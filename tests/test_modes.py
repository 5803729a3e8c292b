"""Evaluation mode for a while."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from vitprune.errors import ModelError
from vitprune.modes import evaluating
from vitprune.trace import trace


class Keeps(nn.Module):
    """Stores a product of its weight when it first runs in eval mode, as LeViT does, and an index, as ConViT does."""

    def __init__(self, caches: bool = True) -> None:
        super().__init__()
        self.caches = caches
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.cache: dict[str, Tensor] = {}
        self.index = torch.zeros(1)

    def train(self, mode: bool = True) -> Keeps:
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if len(self.index) != 3:
            self.index = torch.arange(3)
        out: Tensor = self.second(self.first(x).relu()) + self.index * 0
        if self.caches and "bias" not in self.cache:
            self.cache["bias"] = self.second.bias * 2
        return out + self.cache["bias"] if self.caches else out


def test_modes_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)))
    model.train()
    model[1][1].eval()
    with pytest.raises(ValueError, match="inside"), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise ValueError("inside")
    assert [m.training for m in model.modules()] == [True, True, True, True, False]


def test_caches_do_not_outlive_it() -> None:
    model, x = Keeps().eval(), torch.randn(2, 4)
    with torch.no_grad():
        model(x)
        model.second.bias.add_(1)
        with evaluating(model):
            fresh = model(x)
        assert model.cache == {}
        torch.testing.assert_close(model(x), fresh)


def test_a_traced_model_holds_nothing_of_the_trace() -> None:
    model, x = Keeps(caches=False).eval(), torch.randn(2, 4)
    before = model.index
    with contextlib.suppress(ModelError):  # torch before 2.10 refuses it
        assert trace(model, (x,)).groups
    assert model.index is before
    assert not model.training
    assert torch.isfinite(model(x)).all()
