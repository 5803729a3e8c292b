"""Whole branches of real models: their scores, and plans that take them together with widths."""

from __future__ import annotations

import pytest
import torch

from matrix import OLD_TRANSFORMERS, half_plan, output, relative
from vitprune.allocate import allocate
from vitprune.plan import Plan
from vitprune.score import score
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES

NEW_LAYERS = pytest.mark.skipif(
    OLD_TRANSFORMERS,
    reason="before transformers 5.9 no module of its ViT gives what the MLP adds, without the sum",
)
HF_VIT = pytest.param("hf/vit/eager", marks=NEW_LAYERS)
MODELS = ["timm/vit_tiny/fused", "timm/dinov2/fused", HF_VIT, "timm/swin_tiny/fused", "handwritten/picture"]


def images(case, seed=0):
    (like,) = case.example(2)
    return torch.randn(6, *like.shape[1:], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["timm/dinov2/fused", HF_VIT])  # one with layer scale behind its branches
def test_a_branch_scores_what_the_output_loses_without_it(name):
    case = CASES[name]
    model, x = case.model(), images(case)
    graph = trace(model, case.example(2))
    energy, variance = (score(graph, model, method, batches=[x]) for method in ("energy", "variance"))
    blocks = [g.name for g in graph.groups if g.kind == "block"]
    assert len(blocks) == 4
    for block in blocks[::2]:
        keep = allocate(graph, energy, None, layer_ratios={block: 0}, kinds=["block"])
        assert keep.pruned() == (block,)
        small = shrink(model, graph, keep, check=False, example=case.example(2))
        with torch.no_grad():
            change = (case.out(model(x)) - case.out(small(x))).double()
        assert energy[block].item() == pytest.approx(float(change.square().mean(0).sum()), rel=1e-3)
        assert variance[block].item() == pytest.approx(float(change.var(0, correction=0).sum()), rel=1e-3)
    assert len({energy[b].item() for b in blocks}) == 4


@pytest.mark.parametrize("name", MODELS)
def test_branches_and_widths_go_together(name):
    """The oracle passes, MACs and parameters are the plan's, and a saved plan gives the same model."""
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    kinds = [k for k in ("mlp", "qk", "v", "block") if any(g.kind == k for g in graph.groups)]
    scores = score(graph, model, "random", seed=1)
    plan = allocate(graph, scores, "macs=0.6", kinds=kinds, ratios={"block": 0.75}, round_to=2)
    gone = [n for n in plan.pruned() if n.endswith(":block")]
    assert gone and len(gone) == len([g for g in graph.groups if g.kind == "block"]) * 0.25
    inside = [g.name for g in graph.groups if any(f"{g.module}." == f"{m}." for b in gone for m in graph[b].modules)]
    assert inside and not set(inside) & (set(plan.pruned()) - set(gone)), "nothing is taken from what is gone"
    small = shrink(model, graph, plan, example=case.example(2))  # with the oracle
    assert sum(p.numel() for p in small.parameters()) == plan.obtained["params"]["value"]
    assert trace(small, case.example(2)).cost() == tuple(plan.obtained[m]["value"] for m in ("macs", "params"))
    again = shrink(case.model(seed=1), graph, Plan.from_json(plan.to_json()), check=False, example=case.example(2))
    again.load_state_dict(small.state_dict(), strict=True)
    assert relative(output(case, again, 2), output(case, small, 2)) < 1e-6


@pytest.mark.parametrize("name", MODELS[:2])
def test_widths_in_removed_branches_change_nothing(name):
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    both = half_plan(graph, ["mlp", "v", "block"])
    gone = {m for n, g in both.groups.items() if not g.kept_size for m in graph[n].modules}
    cleaned = Plan(
        {
            n: half_plan(graph, []).groups[n] if graph[n].module in gone and g.kept_size else g
            for n, g in both.groups.items()
        },
        graph.fingerprint,
    )
    assert cleaned.sizes() != both.sizes()
    assert graph.cost(cleaned.sizes()) == graph.cost(both.sizes())
    one, other = (shrink(model, graph, plan, example=case.example(2)) for plan in (both, cleaned))
    assert relative(output(case, one, 2), output(case, other, 2)) == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("hf/vit/fused", marks=NEW_LAYERS),
        HF_VIT,
        pytest.param("hf/deit/fused", marks=NEW_LAYERS),
        "hf/dinov2/fused",
        "timm/swin_tiny/fused",
        "timm/eva02_tiny/fused",
    ],
)  # a mask for all blocks, weights that nobody reads, windows, checks
def test_attention_branches_are_found_as_those_of_mlps_are(name):
    case = CASES[name]
    graph = trace(case.model(), case.example(2))
    blocks = [g for g in graph.groups if g.kind == "block"]
    attention = [b for b in blocks if "att" in b.name.rpartition(".")[2]]
    assert len(attention) == len(blocks) / 2 >= 2
