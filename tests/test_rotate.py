"""Heads in another basis: the same function, and less lost when the last dims go."""

import itertools

import pytest
import torch
from torch import nn

import vitprune
from matrix import quiet
from refit_parts import images
from vitprune.calibrate import CalibrationError
from vitprune.plan import GroupPlan, Plan, keep_all
from vitprune.rotate import KINDS, RotateError, ordered, rotate
from vitprune.rotate.factor import directions
from vitprune.rotate.paths import Path, find_path
from vitprune.rotate.residual import basis
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES

SINGLE = [n for n in sorted(CASES) if len(CASES[n].example(2)) == 1 and not n.endswith("/eager")]
QUICK = [
    "timm/vit_tiny/fused", "hf/vit/eager", "hf/beit_own_bias/fused", "timm/beit/fused", "timm/swin_tiny/fused",
    "torchvision/vit_b_16", "hf/dinov3/fused", "timm/cait_xxs24/fused", "timm/xcit_nano/fused", "hf/siglip/fused",
    "hf/hiera", "timm/mobilevit/fused", "hf/segformer/fused", "handwritten/picture", "timm/samvit/fused",
]  # fmt: skip


def moment(n, seed):
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / len(x)


def test_directions_are_the_best_of_every_rank():
    left, right = moment(6, 0), moment(6, 1)
    a, b, energy = directions(left, right)
    torch.testing.assert_close(a @ b.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (energy[:-1] >= energy[1:]).all()

    def error(kept):
        """E[(p.q - p' .q')^2] for independent p and q: tr(E^T left E right), E what is missing of the identity."""
        missing = torch.eye(6, dtype=torch.float64) - a[:, kept] @ b[:, kept].T
        return float((missing.T @ left @ missing @ right).trace())

    for rank in range(6):
        assert error(list(range(rank))) == pytest.approx(float(energy[rank:].sum()), rel=1e-4, abs=1e-9)
    best = min(error(list(kept)) for kept in itertools.combinations(range(6), 3))
    assert error([0, 1, 2]) == pytest.approx(best, rel=1e-9)
    picked = []
    for kept in itertools.combinations(range(6), 3):  # dims picked as they are, without a change of basis
        missing = torch.diag(torch.tensor([float(i not in kept) for i in range(6)], dtype=torch.float64))
        picked.append(float((missing @ left @ missing @ right).trace()))
    assert best < min(picked)


def test_directions_without_use_stay_finite():
    thin = torch.zeros(4, 4, dtype=torch.float64)
    thin[0, 0] = 1.0
    for left, right in ((thin, moment(4, 2)), (thin, thin), (torch.zeros_like(thin), moment(4, 2))):
        a, b, energy = directions(left, right)
        assert bool(torch.isfinite(a).all() and torch.isfinite(b).all() and torch.isfinite(energy).all())
        torch.testing.assert_close(a @ b.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in SINGLE])
def test_the_rotated_model_is_the_dense_one(name):
    case = CASES[name]
    model = case.model()
    with quiet():
        graph = trace(model, case.example(2))
        rotated = rotate(model, graph, [images(name, 8, 3)])
    fresh = images(name, 4, 11)
    with torch.no_grad():
        want, got = case.out(model.eval()(fresh)), case.out(rotated.model.eval()(fresh))
    assert float((got - want).abs().max()) <= 1e-5 * float(want.square().mean().sqrt())
    names = {g.name for g in graph.groups if g.kind in KINDS}
    assert set(rotated.energy) | set(rotated.left) == names and not set(rotated.energy) & set(rotated.left)
    for group in (graph[n] for n in rotated.energy):
        assert rotated.energy[group.name].shape == (group.lanes, group.size)
        changed = [m.tensor for m in group.members if m.tensor in dict(model.named_parameters())]
        assert any(not torch.equal(model.get_parameter(t), rotated.model.get_parameter(t)) for t in changed)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("timm/vit_tiny_qk_norm/fused", "qk", "layer_norm in blocks.0.attn.q_norm stands between"),
        ("timm/eva02_tiny/fused", "qk", "mul in blocks.0.attn stands between"),
        ("timm/vit_norms/fused", "v", "layer_norm in blocks.0.attn.norm stands between"),
        ("timm/samvit/fused", "qk", "einsum in blocks.0.attn uses the dims otherwise"),
        ("hf/swinv2", "qk", "linalg_vector_norm in swinv2"),
        ("timm/levit", "v", "batch_norm in stages.0"),
        ("timm/levit", "residual", "batch_norm in stem"),
        ("timm/swin_tiny/fused", "residual", "normalises other axes"),
        ("timm/pe_core/fused", "residual", "add in blocks.0 follows layer_norm in norm_pre"),
        ("hf/internvl/fused", "residual", "pow in body.encoder.layer.0.layernorm_before stands in the stream"),
        ("timm/mixer", "residual", "linear in blocks.0.mlp_tokens.fc1 stands in the stream"),
        ("timm/vit_diff/eager", "qk", "its units are used in another way, too: the outputs would change by"),
    ],
)
def test_what_stands_between_is_named(name, kind, reason):
    case = CASES[name]
    model = case.model()
    with quiet():
        graph = trace(model, case.example(2))
        rotated = rotate(model, graph, [images(name, 4, 3)])
    assert any(reason in why for n, why in rotated.left.items() if graph[n].kind == kind)


@pytest.mark.parametrize("name", ["timm/vit_tiny/fused", "hf/vit/eager", "torchvision/vit_b_16"])
@pytest.mark.parametrize("kind", ["qk", "v"])
def test_less_is_lost_than_by_any_pick_of_dims(name, kind):
    """Two of the dims of one group go: in the new basis the last two, in the old one every pair in turn."""
    case = CASES[name]
    model = case.model()
    with quiet():
        graph = trace(model, case.example(2))
        calibration = [images(name, 16, s) for s in range(2)]
        rotated = rotate(model, graph, calibration)
    group = next(g for g in graph.groups if g.kind == kind)
    fresh = images(name, 16, 0)

    def lost(source: nn.Module, gone: tuple[int, ...]) -> float:
        lane = tuple(i for i in range(group.size) if i not in gone)
        plan = Plan(
            {g.name: keep_all(g) for g in graph.groups}
            | {group.name: GroupPlan(group.kind, group.size, group.lanes, (lane,) * group.lanes)}
        )
        with quiet(), torch.no_grad():
            small = shrink(source, graph, plan, check=False, example=case.example(2))
            return float((case.out(small(fresh)) - case.out(model(fresh))).norm())

    mine = lost(rotated.model, (group.size - 2, group.size - 1))
    others = [lost(model, pair) for pair in list(itertools.combinations(range(group.size), 2))[::4]]
    assert mine < min(others)


def test_queries_and_keys_may_shift_by_a_constant():
    """The mean of the keys does not count: the softmax over the tokens does not feel it."""
    case = CASES["timm/vit_tiny/fused"]
    model, shifted = case.model(), case.model()
    width = model.blocks[0].attn.qkv.in_features
    with torch.no_grad():
        shifted.blocks[0].attn.qkv.bias[width : 2 * width] += 30
    energies = []
    for m in (model, shifted):
        graph = trace(m, case.example(2))
        energies.append(rotate(m, graph, [images(case.name, 16, 0)]).energy["blocks.0.attn:qk"])
    assert energies[1] == pytest.approx(energies[0], rel=1e-2, abs=1e-5 * energies[0].max())


@pytest.mark.parametrize("centred", [True, False])
def test_the_basis_is_orthogonal_and_carries_most_in_front(centred):
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * torch.linspace(3, 0.1, 24) @ torch.linalg.qr(moment(24, 5)).Q
    x = x - x.mean(1, keepdim=True) if centred else x
    covariance = x.T @ x / len(x)
    q, energy = basis(covariance, centred)
    torch.testing.assert_close(q @ q.T, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(energy, (x @ q.T).square().mean(0))
    assert (energy[:-1] >= energy[1:]).all()
    if centred:
        torch.testing.assert_close(q.sum(1), torch.ones(24, dtype=torch.float64))
        norm = nn.LayerNorm(24, elementwise_affine=False, dtype=torch.float64)
        torch.testing.assert_close(norm(x @ q.T), norm(x) @ q.T)
    best = torch.linalg.eigvalsh(covariance).flip(0)
    if not centred:
        torch.testing.assert_close(energy, best)
    assert float(energy[:8].sum()) > 0.8 * float(best[:8].sum())


def test_a_narrower_stream_loses_less_in_its_own_basis():
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    with torch.no_grad():  # random weights use all channels alike: let some matter more
        for block in model.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight.copy_(torch.linspace(0.05, 2, len(norm.weight)))
    batches = [images(case.name, 32, s) for s in range(4)]
    rotated = rotate(model, graph, batches, ["residual"])
    (group,) = (g for g in graph.groups if g.kind == "residual")
    fresh, lost = images(case.name, 16, 9), []
    for source, scores in ((model, vitprune.score(graph, model, "energy", batches=batches)), (rotated.model, None)):
        order = range(group.size) if scores is None else scores[group.name][0].argsort()[::-1]
        kept = tuple(sorted(int(i) for i in list(order)[: group.size // 2]))
        plan = Plan(
            {g.name: keep_all(g) for g in graph.groups} | {group.name: GroupPlan(group.kind, group.size, 1, (kept,))}
        )
        small = shrink(source, graph, plan, check=False, example=case.example(2))
        vitprune.refit(source, small, graph, plan, batches)
        with torch.no_grad():
            lost.append(float((small(fresh) - model(fresh)).norm()))
    assert lost[1] < 0.95 * lost[0]


def test_a_norm_with_vanishing_factors_gives_its_shift_to_biases_or_stays():
    case = CASES["timm/vit_tiny/fused"]
    for biased in (True, False):
        model = case.model()
        with torch.no_grad():
            for norm in (model.blocks[0].norm1, model.norm):
                norm.weight[3] = 1e-9
                norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
        if not biased:
            model.blocks[0].attn.qkv.bias = None
        graph = trace(model, case.example(2))
        rotated = rotate(model, graph, [images(case.name, 8, 0)], ["residual"])
        if not biased:
            assert "blocks.0.norm1.weight has very small values" in rotated.left["residual"]
            continue
        assert rotated.energy["residual"].shape == (1, model.embed_dim)
        assert not bool(rotated.model.blocks[0].norm1.bias.any())


def test_scores_follow_the_rotation():
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    rotated = rotate(model, graph, iter([images(case.name, 8, 0)]))
    scores = vitprune.score(graph, rotated.model)
    got = ordered(scores, rotated)
    assert (got["blocks.0.attn:qk"][:, :-1] >= got["blocks.0.attn:qk"][:, 1:]).all()
    assert sorted(got["blocks.0.attn:qk"].ravel()) == sorted(scores["blocks.0.attn:qk"].ravel())
    assert got["blocks.0.mlp:mlp"] is scores["blocks.0.mlp:mlp"]


def test_the_path_of_a_fused_layer():
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    path = find_path(graph, graph["blocks.0.attn:qk"])
    assert isinstance(path, Path)
    width = model.blocks[0].attn.qkv.in_features
    ((q,), (k,)) = path.left.weights, path.right.weights
    assert (q.tensor, q.dim) == (k.tensor, k.dim) == ("blocks.0.attn.qkv.weight", 0)
    assert (k.index - q.index == width).all() and q.index.ravel().tolist() == list(range(width))
    ((bias,), _) = path.left.biases, path.right.biases
    assert bias.tensor == "blocks.0.attn.qkv.bias" and (bias.index == q.index).all()
    assert find_path(graph, graph["blocks.0.mlp:mlp"]) == "not the dims of a head"


def test_bad_images_are_refused():
    case = CASES["timm/vit_tiny/fused"]
    model = case.model()
    graph = trace(model, case.example(2))
    with pytest.raises(RotateError, match="at least one batch of images"):
        rotate(model, graph, [])
    bad = images(case.name, 4, 0)
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="activations at layer 'blocks.0.attn.qkv' are NaN or infinite"):
        rotate(model, graph, [bad])
