"""The refit of layers whose output is added to a residual stream."""

import sys

import pytest
import torch

from matrix import half_plan
from vitprune.calibrate import Replay, sensitivities, sites
from vitprune.plan import GroupPlan, Plan, keep_all
from vitprune.refit import refit
from vitprune.refit.joined import joined
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES


@pytest.mark.parametrize(
    ("name", "weight", "scaled"),
    [
        ("timm/vit_tiny/fused", "blocks.0.mlp.fc2.weight", None),
        ("timm/vit_tiny/fused", "blocks.1.attn.proj.weight", None),
        ("timm/beit/fused", "blocks.0.attn.proj.weight", "blocks.0.gamma_1"),
        ("timm/dinov2/fused", "blocks.0.mlp.fc2.weight", "blocks.0.ls2.gamma"),
        ("hf/dinov2/eager", "encoder.layer.0.mlp.fc2.weight", "encoder.layer.0.layer_scale2.lambda1"),
        ("timm/swin_tiny/fused", "layers.0.blocks.0.mlp.fc2.weight", None),
    ],
)
def test_the_sum_that_a_branch_ends_in_is_found(name, weight, scaled):
    case = CASES[name]
    replay = Replay(case.model(), case.example(3)[0])
    found = {n.removeprefix("dinov2."): (n, s[0]) for n, s in sites(replay.captured).items()}
    _, site = found[weight]
    join = joined(replay, site)
    assert join is not None
    assert (join.scale or "").removeprefix("dinov2.") == (scaled or "")
    env = replay.start(case.example(3)[0])
    with torch.no_grad():
        replay.advance(env, 0, replay.at[site.node] + 1)
        assert join.other in env, "the other summand must be there, and alive"
        assert env[join.other].shape == env[site.node].shape


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("timm/vit_tiny/fused", "blocks.0.mlp.fc1.weight"),
        ("timm/vit_tiny/fused", "head.weight"),
        ("timm/swin_tiny/fused", "layers.0.blocks.1.attn.proj.weight"),  # back from windows before it is added
        ("timm/convnext", "stages.0.blocks.0.mlp.fc2.weight"),  # channels move before it is scaled
    ],
)
def test_layers_that_end_elsewhere_have_none(name, weight):
    case = CASES[name]
    replay = Replay(case.model(), case.example(3)[0])
    assert joined(replay, sites(replay.captured)[weight][0]) is None


def seen_by(model, path, x):
    """What a module is given."""
    held = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, given: held.append(given[0].detach()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return held[0].double()


def test_a_branch_makes_up_for_what_the_stream_lacks():
    """The last attention's projection, all before it refitted: least squares of the dense sum minus the stream."""
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp", "v"])
    small = shrink(model, graph, plan, example=case.example(2))
    x = torch.randn(160, *case.example(2)[0].shape[1:], generator=torch.Generator().manual_seed(0))
    found = {layer.weight: layer for layer in refit(model, small, graph, plan, [x[:80], x[80:]])}
    reads, stream = seen_by(small, "blocks.1.attn.proj", x), seen_by(small, "blocks.1.norm1", x)
    wanted = seen_by(model, "blocks.1.norm2", x) - stream
    felt = sensitivities(model, [x[:80]], images=28, draws=1)["blocks.1.attn.proj.weight"].weights(reads).flatten()
    proj = small.blocks[1].attn.proj
    got = torch.nn.functional.linear(reads, proj.weight.double(), proj.bias.double()).flatten(0, 1)
    a, b = torch.cat([reads, torch.ones_like(reads[..., :1])], -1).flatten(0, 1), wanted.flatten(0, 1)
    root = felt.sqrt().unsqueeze(1)
    best = a @ torch.linalg.lstsq(a * root, b * root).solution

    def error(y):
        return float(((b - y).square().sum(1) * felt).mean().detach())

    assert error(best) <= error(got) < 1.01 * error(best)
    assert found["blocks.1.attn.proj.weight"].after == pytest.approx(error(got), rel=1e-3)


def test_layers_do_not_stand_in_for_branches_that_are_gone(monkeypatch):
    """A removed branch leaves a gap in the stream that is not for the others to fill."""
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    branch = next(g for g in graph.groups if g.kind == "block")
    plan = Plan({g.name: keep_all(g) if g is not branch else GroupPlan("block", 1, 1, ((),)) for g in graph.groups})
    asked = []
    monkeypatch.setattr(sys.modules["vitprune.refit.refit"], "joined", lambda *_: asked.append(1))
    small = shrink(model, graph, plan, example=case.example(2))
    assert refit(model, small, graph, plan, [torch.randn(8, *case.example(2)[0].shape[1:])])
    assert not asked
    plan = half_plan(graph, ["mlp"])
    refit(model, shrink(model, graph, plan, example=case.example(2)), graph, plan, [torch.randn(8, 3, 32, 32)])
    assert asked


def test_a_channel_with_no_scale_is_left_alone():
    case = CASES["timm/beit/fused"]
    model = case.model()
    with torch.no_grad():
        model.blocks[0].gamma_2[3] = 0
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])
    small = shrink(model, graph, plan, example=case.example(2))
    before = small.blocks[0].mlp.fc2.weight.detach().clone()
    refit(model, small, graph, plan, [torch.randn(32, *case.example(2)[0].shape[1:])])
    after = small.blocks[0].mlp.fc2.weight.detach()
    assert torch.equal(before[3], after[3]) and not torch.allclose(before[2], after[2])
