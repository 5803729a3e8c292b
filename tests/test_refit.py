"""Replay, least squares and the refit of shrunk models, against independent computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitprune
from matrix import half_plan, output, relative
from refit_parts import half_of_the_mlp, images
from vitprune.calibrate import CalibrationError, Replay, sites
from vitprune.plan import GroupPlan, Plan, identity
from vitprune.progress import Silent
from vitprune.refit import RefitError, refit
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES

MODELS = [
    "timm/vit_tiny/fused", "hf/vit/eager", "timm/swin_tiny/fused", "torchvision/vit_b_16", "timm/mobilevit/fused",
    "timm/beit/fused",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_replay_in_two_stretches_gives_the_models_output(name: str) -> None:
    case = CASES[name]
    model, x = case.model(), images(name, 3, 0)
    replay = Replay(model, x)
    env = replay.start(x)
    half = len(replay.nodes) // 2
    replay.advance(env, 0, half)
    held = {key: value for key, value in env.items() if key in replay.at}
    assert 0 < len(held) < 20, "what is no longer needed must go"
    replay.advance(env, half, len(replay.nodes) - 1)
    (result,) = (n.name for n in replay.nodes[-1].all_input_nodes[-1:])
    with torch.no_grad():
        torch.testing.assert_close(env[result], case.out(model(x)), rtol=1e-5, atol=1e-6)


def test_sites_are_the_linear_layers() -> None:
    case = CASES["timm/vit_tiny/fused"]
    captured = Replay(case.model(), images(case.name, 2, 0)).captured
    found = sites(captured)
    names = {n for n, m in case.model().named_modules() if isinstance(m, nn.Linear)}
    assert {w.removesuffix(".weight") for w in found} == names
    (site,) = found["blocks.0.mlp.fc2.weight"]
    assert (site.bias, site.channels_first) == ("blocks.0.mlp.fc2.bias", False)


@pytest.mark.parametrize("name", MODELS)
def test_refit_brings_every_family_nearer_to_the_dense_model(name: str) -> None:
    case = CASES[name]
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp", "v"])
    small = shrink(model, graph, plan, example=case.example(2))
    fresh = images(name, 16, 9)
    with torch.no_grad():
        want, before = case.out(model(fresh)), case.out(small(fresh))
    found = refit(model, small, graph, plan, [images(name, 16, s) for s in range(4)])
    with torch.no_grad():
        after = case.out(small(fresh))
        assert torch.equal(case.out(model(fresh)), want), "the dense model must stay as it is"
    assert found and all(layer.after < layer.before for layer in found if layer.cut)
    assert (after - want).norm() < 0.8 * (before - want).norm()
    assert not any(p.grad is not None for p in small.parameters())


def test_a_computed_bias_is_part_of_what_a_layer_gives() -> None:
    """BEiT joins the bias of q and v with zeros for k: no parameter, but it counts."""
    case = CASES["timm/beit/fused"]
    model = case.model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                p.normal_(generator=torch.Generator().manual_seed(0))
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])
    small, batch = shrink(model, graph, plan, example=case.example(2)), images(case.name, 48, 0)
    layer = next(
        x for x in refit(model, small, graph, plan, [batch], felt={}) if x.weight == "blocks.1.attn.qkv.weight"
    )
    given = []
    for whole in (model, small):
        block, read = whole.blocks[1], []
        hook = block.norm1.register_forward_hook(lambda _m, _x, y, read=read: read.append(y))
        with torch.no_grad():
            whole(batch)
            bias = torch.cat([block.attn.q_bias, torch.zeros_like(block.attn.q_bias), block.attn.v_bias])
            given.append(nn.functional.linear(read[0], block.attn.qkv.weight, bias))
        hook.remove()
    error = float((given[0] - given[1]).square().sum(-1).mean())
    assert layer.after == pytest.approx(error, rel=1e-4)
    assert layer.after < layer.before


def test_redundant_units_are_made_up_for_entirely() -> None:
    """Two hidden units that always give the same: with one of them gone, its twin does the work of both."""
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.weight[5], mlp.fc1.bias[5] = mlp.fc1.weight[2], mlp.fc1.bias[2]
        mlp.fc2.weight[:, 5] *= 20
    graph = trace(model, case.example(2))
    group = graph["blocks.0.mlp:mlp"]
    plan = Plan({group.name: GroupPlan("mlp", group.size, 1, (tuple(i for i in range(group.size) if i != 5),))})
    small = shrink(model, graph, plan, example=case.example(2))
    before = relative(output(case, small, 5), output(case, model, 5))
    layer, *later = refit(model, small, graph, plan, [images(case.name, 64, s) for s in range(3)])
    assert layer.weight == "blocks.0.mlp.fc2.weight"
    assert layer.samples == 3 * 64 * 17
    assert [x.weight for x in later][:2] == ["blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight"]
    assert before > 0.1
    assert relative(output(case, small, 5), output(case, model, 5)) < 0.05 * before
    assert layer.after < 1e-3 * layer.before


def test_nothing_is_refitted_where_nothing_went() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    same = shrink(model, graph, identity(graph), example=case.example(2))
    assert refit(model, same, graph, identity(graph), [images(case.name, 4, 0)]) == ()
    assert relative(output(case, same, 2), output(case, model, 2)) == 0
    with pytest.raises(RefitError, match="at least one batch of images"):
        refit(model, same, graph, identity(graph), [])


class Said(Silent):
    """Progress that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_too_few_images_are_said_with_the_number_that_would_do() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model, graph, plan, small = half_of_the_mlp(case)
    inputs = small.blocks[0].mlp.fc2.in_features
    few = -(-10 * inputs // 17) - 1  # 17 tokens each
    for count, expected in ((few, 1), (few + 1, 0)):
        said = Said()
        layers = refit(model, small, graph, plan, [images(case.name, count, 0)], progress=said)
        assert {layer.inputs for layer in layers} >= {inputs}
        assert len(said.lines) == expected
    said = Said()
    refit(model, small, graph, plan, [images(case.name, 3, 0)], progress=said)
    assert f"3 images give 51 samples for the {inputs} inputs of blocks.0.mlp.fc2.weight" in said.lines[0]
    assert f"{few + 1} images or more would do better" in said.lines[0]


def test_inputs_that_never_vary_are_said_and_damped() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[:] = 0
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])
    small = shrink(model, graph, plan, example=case.example(2))
    said = Said()
    refit(model, small, graph, plan, [images(case.name, 64, 0)], progress=said)
    width = small.blocks[1].mlp.fc2.in_features
    (line,) = said.lines
    assert f"{width} of {width} inputs of blocks.1.mlp.fc2.weight never vary" in line and "singular" in line
    assert all(bool(torch.isfinite(p).all()) for p in small.parameters())


def test_what_a_user_should_know_of_the_fit_reaches_python() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model, graph, plan, small = half_of_the_mlp(case)
    batch = images(case.name, 3, 0)
    with pytest.warns(UserWarning, match="3 images give 51 samples for the .* or more would do better") as caught:
        vitprune.refit(model, small, graph, plan, [batch])
    assert caught[0].filename == __file__
    _, made = vitprune.prune(model, *case.example(2), "macs=0.7", batches=[batch], kinds=["mlp"])
    assert "3 images give 51 samples" in " ".join(made.settings["notes"])
    assert made.settings["not_rotated"] == {}


def test_layers_that_cannot_be_fitted_are_named() -> None:
    case = CASES["timm/mobilevit/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])  # its convolutions' channels among them
    small, notes = shrink(model, graph, plan, example=case.example(2)), []
    found = refit(model, small, graph, plan, [images(case.name, 64, 0)], notes=notes)
    (told,) = (note for note in notes if "only linear layers" in note)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    named = told.partition(" lost inputs")[0].partition(" and ")[0].split(", ")
    assert named and not set(named) & {layer.weight for layer in found}
    for name in named:
        assert small.get_parameter(name).shape[1] < shapes[name][1]
    fitted = {layer.weight for layer in found if layer.cut}
    assert fitted, "pointwise convolutions of the same stream are"


def test_activations_that_are_no_numbers_name_the_layer() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model, graph, plan, small = half_of_the_mlp(case)
    bad = images(case.name, 4, 0)
    bad[1, 0, 0, 0] = torch.inf
    with pytest.raises(CalibrationError, match="activations at layer 'blocks.0.mlp.fc2' are NaN or infinite"):
        refit(model, small, graph, plan, [bad])


def test_prune_refits_where_it_is_given_images() -> None:
    case = CASES["timm/vit_tiny/fused"]
    model, x = case.model(), images(case.name, 48, 1)
    pairs = [(x[:24], torch.zeros(24)), (x[24:], torch.zeros(24))]
    plain, plan = vitprune.prune(model, *case.example(2), batches=pairs, refits=False)
    fitted, same = vitprune.prune(model, *case.example(2), batches=pairs)
    assert plan.groups == same.groups
    fresh = images(case.name, 16, 7)
    with torch.no_grad():
        want = model(fresh)
        assert (fitted(fresh) - want).norm() < 0.8 * (plain(fresh) - want).norm()
