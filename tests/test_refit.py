"""Replay, least squares and the refit of shrunk models, against independent computations."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vitprune
from matrix import half_plan, output, relative
from vitprune.calibrate import CalibrationError, Moments, Replay, sites
from vitprune.calibrate.covariance import WIDE
from vitprune.plan import GroupPlan, Plan, identity
from vitprune.progress import Silent
from vitprune.refit import RefitError, refit
from vitprune.refit.ridge import RIDGES, _errors, best_ridge
from vitprune.refit.spool import Spool
from vitprune.shrink import shrink
from vitprune.trace import trace
from vitprune.trace.graph import Graph
from zoo import CASES, Case

MODELS = [
    "timm/vit_tiny/fused", "hf/vit/eager", "timm/swin_tiny/fused", "torchvision/vit_b_16", "timm/mobilevit/fused",
    "timm/beit/fused",
]  # fmt: skip


def images(case: str, count: int, seed: int) -> Tensor:
    (like,) = CASES[case].example(2)
    return torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("bias", [True, False])
def test_moments_solve_the_shrunk_normal_equations(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    r = x @ torch.randn(6, 3, generator=generator).double() + 0.7 + 0.1 * torch.randn(400, 3, generator=generator)
    moments = Moments(6, 3, torch.device("cpu"))
    for part in range(4):
        moments.add(x[100 * part : 100 * part + 100], r[100 * part : 100 * part + 100])
    change, shift = moments.solve(bias)
    zero = torch.zeros_like(change), torch.zeros_like(shift)
    before, after = moments.error(*zero), moments.error(change, shift)
    cx, cr = (x - x.mean(0), r - r.mean(0)) if bias else (x, r)
    s, p, n = cx.T @ cx / 400, 6, 400
    square, trace_ = float((s @ s).trace()), float(s.trace())
    rho = ((1 - 2 / p) * square + trace_**2) / ((n + 1 - 2 / p) * (square - trace_**2 / p))
    assert 0 < rho < 0.2
    shrunk = (1 - rho) * s + rho * trace_ / p * torch.eye(p, dtype=torch.float64)
    want = torch.linalg.solve(shrunk, cx.T @ cr / 400).T
    torch.testing.assert_close(change, want)
    torch.testing.assert_close(shift, r.mean(0) - want @ x.mean(0) if bias else torch.zeros(3, dtype=torch.float64))
    assert before == pytest.approx(float(r.square().sum(1).mean()))
    assert after == pytest.approx(float((r - x @ change.T - shift).square().sum(1).mean()))
    exact = torch.linalg.lstsq(torch.cat([x, torch.ones(400, 1)], 1) if bias else x, r).solution
    best = float((r - (torch.cat([x, torch.ones(400, 1)], 1) if bias else x) @ exact).square().sum(1).mean())
    assert best <= after < 0.2 * before


def test_a_half_that_predicts_the_other_chooses_the_damping() -> None:
    generator = torch.Generator().manual_seed(2)
    draw = torch.randn(24, 3, generator=generator).double()
    for noise, samples, expected in ((0.01, 400, True), (50.0, 60, False)):
        halves = (Moments(24, 3, torch.device("cpu")), Moments(24, 3, torch.device("cpu")))
        for half in halves:
            x = torch.randn(samples // 2, 24, generator=generator).double()
            half.add(x, 0.05 * x @ draw + noise * torch.randn(len(x), 3, generator=generator))
        ridge = best_ridge(halves, True)
        if expected:
            assert ridge is not None and ridge < 0.1
            continue
        assert ridge is None or ridge >= 1
        total = halves[0] + halves[1]
        assert total.count == samples and torch.equal(total.xx, halves[0].xx + halves[1].xx)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_is_the_one_that_fits_one_by_one_choose(bias: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    mix, draw = torch.randn(12, 12, generator=generator), torch.randn(12, 4, generator=generator)
    for noise in (0.1, 3.0, 20.0):
        halves = (Moments(12, 4, torch.device("cpu")), Moments(12, 4, torch.device("cpu")))
        for half, samples in zip(halves, (40, 60), strict=True):
            x = torch.randn(samples, 12, generator=generator) @ mix + 1
            r = x @ draw + 2 + noise * torch.randn(samples, 4, generator=generator)
            half.add(x, r, 0.5 + torch.rand(samples, generator=generator))
        errors = {}
        for ridge in RIDGES:
            errors[ridge] = sum(b.error(*a.solve(bias, ridge)) for a, b in (halves, halves[::-1]))
        best = min(errors, key=errors.__getitem__)
        assert best_ridge(halves, bias) == (best if errors[best] < sum(h.rr / h.count for h in halves) else None)
        together = sum(_errors(*pair, bias) for pair in (halves, halves[::-1]))
        torch.testing.assert_close(together, torch.tensor(list(errors.values()), dtype=torch.float64))


def test_the_error_of_a_change_is_that_on_the_samples() -> None:
    generator = torch.Generator().manual_seed(4)
    x, r = torch.randn(50, 4, generator=generator).double(), torch.randn(50, 2, generator=generator).double() + 3
    moments = Moments(4, 2, torch.device("cpu"))
    moments.add(x, r)
    change, shift = torch.randn(2, 4, generator=generator).double(), torch.randn(2, generator=generator).double()
    want = float((r - x @ change.T - shift).square().sum(1).mean())
    assert moments.error(change, shift) == pytest.approx(want)


@pytest.mark.parametrize("inputs", [WIDE // 2, WIDE, 2 * WIDE + 7])
def test_moments_are_weighted_sums_of_products(inputs: int) -> None:
    generator = torch.Generator().manual_seed(6)
    x, r = torch.randn(40, inputs, generator=generator).double(), torch.randn(40, 5, generator=generator).double()
    weights = torch.rand(40, generator=generator)
    moments, single = Moments(inputs, 5, torch.device("cpu")), Moments(inputs, 5, torch.device("cpu"))
    for part in (slice(30), slice(30, None)):
        moments.add(x[part], r[part], weights[part])
        single.add(x[part].float(), r[part].float(), weights[part])
    w = weights.double().diag()
    torch.testing.assert_close(moments.xx, x.T @ w @ x)
    torch.testing.assert_close(moments.xr, x.T @ w @ r)
    torch.testing.assert_close(moments.x, weights.double() @ x)
    torch.testing.assert_close(moments.r, weights.double() @ r)
    assert moments.rr == pytest.approx(float((w @ r.square()).sum())) and moments.count == 40
    torch.testing.assert_close(single.xx, moments.xx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.xr, moments.xr, rtol=1e-5, atol=1e-5)


def test_moments_of_inputs_that_never_vary_change_the_bias_only() -> None:
    moments = Moments(3, 2, torch.device("cpu"))
    moments.add(torch.ones(50, 3), torch.tensor([[1.0, -2.0]]).expand(50, 2))
    change, shift = moments.solve(True)
    assert float(change.abs().max()) < 1e-6
    torch.testing.assert_close(shift, torch.tensor([1.0, -2.0], dtype=torch.float64))
    before, after = moments.error(torch.zeros_like(change), torch.zeros_like(shift)), moments.error(change, shift)
    assert (before, after) == (pytest.approx(5.0), pytest.approx(0.0, abs=1e-9))


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


def half_of_the_mlp(case: Case) -> tuple[nn.Module, Graph, Plan, nn.Module]:
    model = case.model()
    graph = trace(model, case.example(2))
    plan = half_plan(graph, ["mlp"])
    return model, graph, plan, shrink(model, graph, plan, example=case.example(2))


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
