"""Twenty budgets on traced models: never above, close below, and never larger for less."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from vitprune.allocate import SCOPES, Target, allocate
from vitprune.allocate.widths import least, permitted_sizes
from vitprune.arrays import Scores
from vitprune.errors import TargetError
from vitprune.models import example
from vitprune.pipeline.opening import open_model
from vitprune.score import score
from vitprune.trace import trace
from vitprune.trace.graph import KINDS, Graph
from zoo import CASES

BUDGETS = 20
MODELS = (
    "timm/vit_tiny/fused",
    "timm/swin_tiny/fused",
    "timm/mobilevit/fused",
    "timm/deit_tiny_distilled/fused",
    "hf/vit/fused",
    "handwritten/picture",  # with a gated MLP
)


@cache
def traced(name: str) -> tuple[Graph, Scores]:
    """The graph of a small model and its scores by magnitude, those of branches at random."""
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    return graph, score(graph, model) | {
        n: v for n, v in score(graph, model, "random").items() if graph[n].kind == "block"
    }


def smallest(graph: Graph, scores: Scores, metric: str, **settings: object) -> float:
    """The smallest reachable share, as the error names it."""
    with pytest.raises(TargetError, match="the smallest reachable") as caught:
        allocate(graph, scores, Target(metric, 1e-9), **settings)
    return float(str(caught.value).split(f" is {metric}=")[1].split(" ")[0])


@pytest.mark.parametrize("kinds", [("mlp", "qk", "v", "heads"), KINDS], ids=["widths", "all kinds"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("name", MODELS)
def test_less_is_never_more(name, metric, scope, kinds):
    graph, scores = traced(name)
    settings = {"scope": scope, "kinds": [k for k in kinds if any(g.kind == k for g in graph.groups)]}
    low = smallest(graph, scores, metric, **settings)
    polynomial = graph.macs if metric == "macs" else graph.params
    before = 0
    for ratio in np.linspace(low, 1, BUDGETS):
        plan = allocate(graph, scores, Target(metric, float(ratio)), **settings)
        plan.check(graph)
        sizes, got = plan.sizes(), plan.obtained[metric]
        assert got["value"] == polynomial.evaluate(sizes)
        assert before <= got["value"] <= ratio * got["dense"] * (1 + 1e-9)
        before = got["value"]
        for group in graph.groups:
            assert sizes[group.name] in permitted_sizes(group, 8, least(group, None)), group.name
        if got["value"] < 0.99 * ratio * got["dense"]:
            assert any("no rounding step fits" in note for note in plan.settings["notes"])
            assert not fits(graph, plan.settings["not_pruned"], sizes, metric, ratio * got["dense"])
    assert got["value"] == got["dense"]


def fits(graph: Graph, fixed: dict[str, str], sizes: dict[str, int], metric: str, budget: float) -> list[str]:
    """Groups of which one more rounding step would have stayed within the budget."""
    equal = {name: names for names in graph.cosize for name in names}
    found = []
    for group in graph.groups:
        if group.name in fixed or sizes[group.name] == group.size:
            continue
        permitted = permitted_sizes(group, 8, least(group, None))
        more = permitted[permitted > sizes[group.name]][0]
        grown = sizes | {n: int(more) for n in equal.get(group.name, (group.name,)) if n not in fixed}
        if graph.cost(grown)[("macs", "params").index(metric)] <= budget:
            found.append(group.name)
    return found


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_tiny_patch16_224",
        pytest.param("timm:vit_small_patch16_224", marks=pytest.mark.slow),
        pytest.param("timm:swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_models_of_usual_size_come_within_half_a_percent(spec):
    origin = open_model(spec, weights=False).loaded
    graph = trace(origin.model, (example(origin.preprocessing),))
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random() * rng.random((g.lanes, g.size)) for g in graph.groups}
    for scope in SCOPES:
        for metric in ("macs", "params"):
            for ratio in np.linspace(0.25, 1, BUDGETS):
                plan = allocate(graph, scores, Target(metric, float(ratio)), scope=scope)
                assert 0.996 * ratio < plan.obtained[metric]["ratio"] <= ratio
                assert not plan.settings["notes"]
