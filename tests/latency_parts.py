"""A clock that counts parameters instead of measuring time, and a small model to be counted."""

from types import SimpleNamespace

import numpy as np
import timm
import torch

import vitprune
from vitprune.allocate.allocate import choices, plan_at
from vitprune.allocate.target import Target
from vitprune.latency import allocate_latency
from vitprune.latency.branches import find_structure
from vitprune.latency.table import measure_table
from vitprune.progress import Silent
from vitprune.shrink import shrink

HALF = Target.parse("latency=0.5x")


class CountingClock:
    """A region takes a microsecond per parameter and 100 us; a whole model 20 % more, and 1 ms."""

    def __init__(self):
        self.compared = 0

    def parts(self, models, regions, turns):
        row = []
        for model in models:
            inside = [sum(p.numel() for m in r for p in model.get_submodule(m).parameters()) for r in regions]
            inside[0] += sum(p.numel() for p in model.parameters()) - sum(inside)
            row.append([n / 1000 + 0.1 for n in inside])
        return np.array([row] * turns)

    def whole(self, models, turns):
        self.compared += turns
        return np.array([[1.2 * sum(p.numel() for p in m.parameters()) / 1000 + 1 for m in models]] * turns)


def make_tiny():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=3
    ).eval()
    x = torch.randn(2, 3, 16, 16)
    graph = vitprune.trace(model, x)
    return SimpleNamespace(model=model, x=x, graph=graph, scores=vitprune.score(graph, model))


def planned(tiny, target, **settings):
    timing = settings.pop("timing", None)
    clock = settings.pop("clock", CountingClock())
    return allocate_latency(
        tiny.model, tiny.graph, tiny.scores, target, (tiny.x,), clock=clock, timing=timing, **settings
    )


def spaced(tiny, **settings):
    space = choices(tiny.graph, tiny.scores, HALF, **settings)
    structure = find_structure(tiny.graph, space.clusters)

    def build(sizes):
        return shrink(tiny.model, tiny.graph, plan_at(space, sizes, {}), check=False, example=(tiny.x,))

    measured = measure_table(structure, space.clusters, tiny.model, build, CountingClock(), Silent())
    return space, structure, measured, build
