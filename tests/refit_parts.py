"""What the tests of refitting share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matrix import half_plan
from vitprune.plan import Plan
from vitprune.shrink import shrink
from vitprune.trace import trace
from vitprune.trace.graph import Graph
from zoo import CASES, Case


def images(case: str, count: int, seed: int) -> Tensor:
    (like,) = CASES[case].example(2)
    return torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(seed))


def half_of_the_mlp(case: Case) -> tuple[nn.Module, Graph, Plan, nn.Module]:
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])
    return model, graph, plan, shrink(model, graph, plan, example=case.example(2))
