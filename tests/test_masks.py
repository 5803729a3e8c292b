"""Masks on a model: equal to the shrunk model at every step, exact gradients and costs, sharing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from masks_parts import ALL, SETTINGS, TINY, pictures
from matrix import output, relative, traced
from vitprune.masks import Gates, Pressure, Search, on_model
from vitprune.masks.check import half
from vitprune.masks.cost import SoftCost
from vitprune.masks.norms import kept_forward
from vitprune.masks.relax import HardConcrete, StraightThrough, TopK
from vitprune.recover import fit
from zoo import CASES


class Real(StraightThrough):
    """Real-valued factors, whose gradients can be compared with anything."""

    def factors(self, alpha: Tensor, hard: Tensor) -> Tensor:
        """The numbers themselves."""
        return alpha * 1.0

    evaluated = factors

    def settle_(self, alpha: Tensor) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "name",
    [
        TINY, "timm/vit_tiny_qk_norm/fused", "timm/swin_tiny/fused", "timm/eva02_base/fused", "hf/vit/eager",
        "hf/dinov2/fused",
    ],
)  # fmt: skip
def test_the_masked_model_is_the_shrunk_one_at_every_step(name: str) -> None:
    case = CASES[name]
    ready = traced(case)
    gates = on_model(ready.model, ready.graph, ALL, lr=0.2)
    optimizer = torch.optim.AdamW([*ready.model.parameters(), gates.alpha], lr=1e-3)
    cost, seen = SoftCost(gates, "macs"), []
    for step in range(6):
        gates.before_forward(step)
        (output_of(case, ready.model).square().mean() * 1e-3 + cost()).backward()
        gates.after_backward(step)
        noise = torch.Generator().manual_seed(step)
        gates.alpha.grad = gates.alpha.grad * torch.rand(gates.alpha.shape, generator=noise)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        gates.alpha.data -= 0.2 * torch.rand(gates.alpha.shape, generator=noise)
        gates.after_step(step)
        optimizer.zero_grad()
        ready.model.eval()
        if step in (1, 3, 5):
            plan = gates.plan()
            small = gates.shrink(case.example(2))
            assert relative(output(case, ready.model, 2), output(case, small, 2)) < 1e-5
            assert float(cost().detach()) == pytest.approx(ready.graph.cost(plan.sizes())[0] / ready.graph.cost()[0])
            seen.append(len(plan.pruned()))
    assert seen[-1] >= len(gates.vectors) - 2 and {ready.graph[n].kind for n in plan.pruned()} == set(ALL)


def output_of(case: object, model: nn.Module) -> Tensor:
    """The outputs with gradients."""
    return case.out(model(*case.example(2)))  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("sharing", ["residual", "blocks"])
def test_gradients_are_those_of_the_factors(sharing: str) -> None:
    """Against central differences of the whole model in float64."""
    case = CASES[TINY]
    ready = traced(case)
    model = ready.model.double()
    gates = Gates(model, ready.graph, ("mlp", "qk", "v", "heads"), sharing=sharing, relaxation=Real())  # type: ignore[arg-type]
    x = case.example(2)[0].double()
    draw = torch.Generator().manual_seed(0)
    gates.alpha.data.uniform_(0.6, 1.0, generator=draw)
    gates.alpha.data[::7] = 0.0
    gates._write(gates.alpha.data)
    dense = gates.product.weights["blocks.0.mlp.fc2.weight"].clone()
    model(x).square().sum().backward()
    gates.after_backward(0)
    assert torch.equal(dict(model.named_parameters())["blocks.0.mlp.fc2.weight"], dense)
    got, alpha = gates.alpha.grad.clone(), gates.alpha.data.clone()
    at = torch.randperm(len(alpha), generator=draw)[:40].tolist()
    at += list(range(0, len(alpha), 7))[:10]  # zeros: what a closed mask would do if it opened
    for i in at:
        sides = []
        for change in (1e-3, -1e-3):
            moved = alpha.double().clone()
            moved[i] += change
            with torch.no_grad():
                gates._write(moved.float())
                sides.append(float(model(x).square().sum()))
        assert float(got[i]) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-3, abs=2e-3 * float(got.abs().max()))
    assert float((got[::7] != 0).double().mean()) > 0.9  # but for dims of a head that is closed too


@pytest.mark.parametrize(("rms", "biased"), [(False, True), (False, False), (True, False)])
def test_norms_over_kept_positions(rms: bool, biased: bool) -> None:
    """Against the norm of what is kept, and its gradients against finite differences."""
    kept = torch.tensor([1.0, 0, 1, 1, 0, 1, 1], dtype=torch.float64)
    norm: nn.Module = nn.RMSNorm(7, eps=1e-3) if rms else nn.LayerNorm(7, eps=1e-3, bias=biased)
    norm = norm.double()
    generator = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.uniform_(-1, 1, generator=generator)
    x = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    forward = kept_forward(norm, kept, rms)
    at = kept.nonzero().flatten()
    y = x[..., at]
    y = y if rms else y - y.mean(-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-3) * norm.weight[at]  # type: ignore[index]
    want = y + norm.bias[at] if biased else y  # type: ignore[index]
    assert torch.allclose(forward(x)[..., at], want, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, *_: forward(x), (x, *norm.parameters()))


def test_open_gates_change_nothing() -> None:
    ready = traced(CASES[TINY])
    plain = copy.deepcopy(ready.model)
    gates = Gates(ready.model, ready.graph, ("mlp", "qk", "v", "heads"), lr=1e-12)
    for model, hook in ((plain, None), (ready.model, gates)):
        fit(model, pictures(), pictures(16, shuffle=False), SETTINGS, hook=hook)
    gates.close()
    mine, theirs = ready.model.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("sharing", ["residual", "blocks", "independent", "inputs"])
def test_sharing(sharing: str) -> None:
    case = CASES[TINY]
    ready = traced(case)
    gates = on_model(ready.model, ready.graph, ALL, sharing=sharing)
    start = torch.rand(gates.alpha.shape, generator=torch.Generator().manual_seed(1))
    gates.alpha.data.copy_(start)
    gates.refresh()
    plan = gates.plan()
    small = gates.shrink(case.example(2))
    assert relative(output(case, ready.model, 2), output(case, small, 2)) < 1e-5
    behind = gates.behind(plan)
    zeros = sum(int((p == 0).sum()) for p in small.parameters())
    gates.close()
    assert sum(behind.values()) == zeros
    split = [v for v in gates.vectors if not v.alone]
    if sharing in ("independent", "inputs"):
        # blocks.0.attn.proj, mlp.fc2, ... and the patch embedding; or qkv, fc1, ... and the head
        assert len(split) == 5 and zeros > 0
        kept = set(plan.groups[split[0].groups[0]].kept[0])
        parts = dict(zip([v.name for v in gates.vectors], gates._parts(gates.hard), strict=True))
        assert kept == {i for i in range(32) if any(parts[v.name][i] > 0 for v in split)}
    else:
        assert not split and zeros == 0
    if sharing == "blocks":
        assert plan.groups["blocks.0.mlp:mlp"].kept == plan.groups["blocks.1.mlp:mlp"].kept
        assert len(gates.vectors) == 5


def test_lanes_and_coupled_groups_keep_equal_counts() -> None:
    ready = traced(CASES[TINY])
    gates = Gates(ready.model, ready.graph, ("qk", "v", "mlp"), round_to=4, minimum={"mlp": 20})
    gates.alpha.data.copy_(torch.rand(gates.alpha.shape, generator=torch.Generator().manual_seed(3)) * 0.8)
    gates.refresh()
    plan = gates.plan()
    plan.check(ready.graph)
    for block in range(2):
        qk, v, mlp = (plan.groups[f"blocks.{block}.{n}"] for n in ("attn:qk", "attn:v", "mlp:mlp"))
        assert qk.kept_size == v.kept_size and qk.kept_size % 4 == 0 and qk.kept != v.kept
        assert mlp.kept_size % 4 == 0 and 20 <= mlp.kept_size < 88
    gates.alpha.data.zero_()
    gates.refresh()
    assert gates.plan().groups["blocks.0.mlp:mlp"].kept_size == 20
    assert torch.equal(gates.select.counts(gates.hard > 0.5), gates.select.smallest)


def test_hard_concrete_follows_its_paper() -> None:
    """The share of draws above 0 is what the cost counts, and what is evaluated folds into the shrunk model."""
    relaxation, alpha = HardConcrete(), torch.linspace(-3, 3, 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([relaxation.factors(alpha, alpha) for _ in range(4000)])
    assert torch.allclose((draws > 0).float().mean(0), relaxation.presence(alpha, alpha), atol=0.03)
    assert float(draws.min()) == 0 and float(draws.max()) == 1
    case = CASES[TINY]
    ready = traced(case)
    gates = on_model(ready.model, ready.graph, ALL, relaxation=relaxation)
    gates.alpha.data.uniform_(-2, 2, generator=torch.Generator().manual_seed(0))
    gates.refresh()
    small = gates.shrink(case.example(2), check=False)
    assert relative(output(case, ready.model, 2), output(case, small, 2)) < 1e-5


def test_what_a_random_plan_masks() -> None:
    """Whole branches too."""
    case = CASES[TINY]
    ready = traced(case)
    gates = on_model(ready.model, ready.graph, ("mlp", "block"))
    gates.start_from(half(gates))
    plan = gates.plan()
    assert sum(1 for g in plan.groups.values() if g.kept_size == 0) == 2
    small = gates.shrink(case.example(2))
    assert relative(output(case, ready.model, 2), output(case, small, 2)) < 1e-5


@pytest.mark.parametrize(("compiled", "parts"), [(True, 1), (False, 2)])
def test_compiled_models_and_accumulated_gradients(compiled: bool, parts: int) -> None:
    """Both give the masks the gradients of a plain step."""
    x, y = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    found = []
    for plain in (True, False):
        ready = traced(CASES[TINY])
        gates = Gates(ready.model, ready.graph)
        gates.alpha.data.copy_(torch.rand(gates.alpha.shape, generator=torch.Generator().manual_seed(1)))
        gates.refresh()
        search = Search(gates, Pressure(weight=0.1), 2)
        called = torch.compile(ready.model, backend="aot_eager") if compiled and not plain else ready.model
        count = 1 if plain else parts
        search.before_forward(0)
        for part in range(count):
            loss = nn.functional.cross_entropy(called(x[part::count]), y[part::count])
            ((loss + search.extra_loss(0)) / count).backward()
        search.after_backward(0)
        found.append(gates.alpha.grad.clone())
        search.after_step(0)
    assert torch.allclose(*found, atol=1e-5 * float(found[0].abs().max()))


def test_top_k_anneals_towards_the_border() -> None:
    relaxation = TopK()
    lane = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    alpha = torch.tensor([0.9, 0.8, 0.2, 0.1, 1.0, 1.0, 1.0, 1.0], requires_grad=True)
    hard = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 1])
    slopes = []
    for done in (0.0, 1.0):
        relaxation.begin(lane, done)
        factors = relaxation.factors(alpha, hard)
        assert torch.equal(factors.detach(), hard)
        slopes.append(torch.autograd.grad(factors.sum(), alpha)[0])
    assert (slopes[1][:4] < slopes[0][:4]).all() and (slopes[1][1:3] > slopes[1][[0, 3]]).all()
    assert torch.allclose(slopes[0][:4], torch.ones(4), atol=0.05)


def test_norms_count_what_was_drawn() -> None:
    """Units that a draw leaves on are in the statistics, though the plan of now has a single one."""
    ready = traced(CASES[TINY])
    gates = Gates(ready.model, ready.graph, ("residual",), relaxation=HardConcrete())
    with torch.no_grad():
        gates.alpha.fill_(-0.2)
    gates.refresh()
    assert int(gates.hard.sum()) == 1 and all(int(kept.sum()) == 1 for kept in gates.product.kept)
    gates.before_forward(0)
    drawn = gates._drawn
    assert drawn is not None and 1 < int((drawn > 0).sum()) < len(drawn)
    on = (drawn > 0) | (gates.hard > 0)
    assert gates.product.kept and all(torch.equal(kept > 0, on) for kept in gates.product.kept)
    gates.close()
