"""Every model of the matrix: shrunk equals masked dense, and the shrunk model is a full citizen of PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch

from matrix import (
    TOLERANCE,
    Traced,
    batch_gap,
    compiled_gap,
    copy_problem,
    counted_macs,
    exported_gap,
    gradients,
    half_plan,
    one_batch,
    onnx_gap,
    output,
    parameters,
    relative,
    rolled_gaps,
    structure,
    traced,
)
from vitprune.compose import compose, same_groups
from vitprune.errors import ModelError, OracleError
from vitprune.plan import identity
from vitprune.shrink import shrink
from vitprune.trace import trace
from zoo import CASES, Case

# What is refused, and the words that the refusal must have. Anything else that fails is an error of the engine.
ALL = "all at once"
RAGGED = "unequal parts"  # two half-heads under one head keep different numbers of q/k dims: no rectangle holds them
EXPECTED_REFUSALS: dict[tuple[str, str], str] = {
    (f"timm/{name}/eager", kind): RAGGED for name in ("vit_diff", "vit_dpwee") for kind in ("qk", ALL)
}


def marked(name: str, beyond_slow: bool) -> object:
    """The case as a parameter; models beyond the list are slow: `make test-all` runs them."""
    return pytest.param(CASES[name], id=name, marks=[] if CASES[name].listed else [pytest.mark.slow])


EACH = pytest.mark.parametrize("case", [marked(name, True) for name in CASES])
EVERY = pytest.mark.parametrize("case", [marked(name, False) for name in CASES])
FAMILIES = pytest.mark.parametrize(
    "name",
    [
        "timm/vit_tiny/fused", "hf/vit/eager", "timm/swin_tiny/fused", "timm/eva02_tiny/fused", "hf/dinov3_gated/fused",
        "torchvision/vit_b_16", "handwritten/picture",
    ],
)  # fmt: skip


def refusal(ready: Traced, kind: str, error: Exception) -> str:
    """What is wrong with a refusal, "" if it was to be expected."""
    words = EXPECTED_REFUSALS.get((ready.case.name, kind))
    if words is None:
        return f"refused: {error}"
    return "" if words in str(error) else f"refused for another reason: {error}"


def exact(ready: Traced, kinds: list[str]) -> bool:
    """Whether the trace calls all groups of these kinds exact."""
    return all(g.exact for g in ready.graph.groups if g.kind in kinds)


@EACH
def test_each_kind_alone(case: Case) -> None:
    """Half of one kind removed: the outputs are those of the masked dense model, the parameters as many as said."""
    ready = traced(case)
    members = [tuple((m.tensor, m.dim, m.index.tobytes()) for m in g.members) for g in ready.graph.groups if g.members]
    assert len(set(members)) == len(members), "two groups with the very same members"
    whole = ready.small(identity(ready.graph))
    assert relative(output(case, whole, 2), output(case, ready.model, 2)) == 0
    problems: dict[str, object] = {}
    for kind in ready.kinds:
        plan = half_plan(ready.graph, [kind])
        try:
            small = ready.small(plan)
            gap = ready.gap(small, plan)
        except (ModelError, OracleError) as error:
            if wrong := refusal(ready, kind, error):
                problems[kind] = wrong
            continue
        if (case.name, kind) in EXPECTED_REFUSALS:
            problems[kind] = "works: take it out of EXPECTED_REFUSALS"
        elif not gap < TOLERANCE and exact(ready, [kind]):
            problems[kind] = gap
        elif parameters(small) != ready.graph.cost(plan.sizes())[1]:
            problems[kind] = f"{parameters(small)} parameters, not {ready.graph.cost(plan.sizes())[1]}"
    assert problems == {}


@EVERY
def test_everything_at_once(case: Case) -> None:
    """Half of everything removed: exact, same keys and classes, any batch, copies, state dicts, gradients."""
    ready = traced(case)
    plan = half_plan(ready.graph)
    if not plan.pruned():
        pytest.skip("no group but whole branches")
    try:
        small = ready.small(plan)
        gap = ready.gap(small, plan)
    except (ModelError, OracleError) as error:
        assert refusal(ready, ALL, error) == ""
        return
    assert (case.name, ALL) not in EXPECTED_REFUSALS, "works: take it out of EXPECTED_REFUSALS"
    assert gap < TOLERANCE or not exact(ready, ready.kinds)
    assert parameters(small) == ready.graph.cost(plan.sizes())[1] < parameters(ready.model)
    assert structure(small) == structure(ready.model)
    assert relative(output(case, small, 2), output(case, ready.model, 2)) > 1e-3, "nothing was removed"
    assert batch_gap(case, small) < TOLERANCE
    assert copy_problem(case, small) == ""

    want = output(case, small, 2)
    second = shrink(case.model(1), ready.graph, plan, check=False, example=ready.args)
    assert relative(output(case, second, 2), want) > 1e-3
    second.load_state_dict(small.state_dict(), strict=True)
    second.train().eval()  # some models keep attention biases of the old weights from their last call on
    assert relative(output(case, second, 2), want) == 0

    shifted = rolled_gaps(ready, small, plan)
    assert max(shifted.values()) > 1e-4
    if case.listed:
        assert {n: g for n, g in shifted.items() if not g > 1e-4} == {}, "a shifted member must be seen in the output"

    if one_batch(case):
        assert counted_macs(case, ready.model) == ready.graph.cost()[0]
        assert counted_macs(case, small) == ready.graph.cost(plan.sizes())[0]

    before = gradients(case, copy.deepcopy(ready.model))
    after = gradients(case, copy.deepcopy(small))
    assert after == dict.fromkeys(before, True)


@pytest.mark.slow
@FAMILIES
def test_compile(name: str) -> None:
    case = CASES[name]
    ready = traced(case)
    small = ready.small(half_plan(ready.graph))
    backend = "inductor" if name == "timm/vit_tiny/fused" else "aot_eager"
    assert compiled_gap(case, small, backend) < TOLERANCE


@pytest.mark.slow
@FAMILIES
def test_export_with_a_free_batch(name: str) -> None:
    case = CASES[name]
    ready = traced(case)
    assert exported_gap(case, ready.small(half_plan(ready.graph))) < TOLERANCE


@pytest.mark.slow
@FAMILIES
def test_onnx(name: str, tmp_path) -> None:
    case = CASES[name]
    ready = traced(case)
    assert onnx_gap(case, ready.small(half_plan(ready.graph)), str(tmp_path / "small.onnx")) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["timm/vit_tiny/fused", "hf/vit/fused", "timm/swin_tiny/eager", "timm/eva02_tiny/fused", "hf/dinov3/eager"]
)
def test_twice_is_the_composition(name: str) -> None:
    case = CASES[name]
    ready = traced(case)
    first = half_plan(ready.graph, ["heads", "mlp", "residual"])
    once = ready.small(first)
    graph = trace(once, ready.args)
    second = half_plan(graph, ["qk", "v", "mlp", "residual"], seed=1)
    twice = shrink(once, graph, second, check=False, example=ready.args)
    both = compose(first, second, ready.graph, same_groups(graph, ready.graph))
    at_once = ready.small(both)
    assert {n: p.shape for n, p in twice.named_parameters()} == {n: p.shape for n, p in at_once.named_parameters()}
    assert all(torch.equal(p, q) for p, q in zip(twice.parameters(), at_once.parameters(), strict=True))
    assert relative(output(case, twice, 2), output(case, at_once, 2)) < TOLERANCE
    assert batch_gap(case, twice) < TOLERANCE


@pytest.mark.parametrize("option", ["proj_drop_rate", "attn_drop_rate", "drop_path_rate", "pos_drop_rate"])
def test_dropout_is_still_at_work_in_training(option: str) -> None:
    """Modules whose forward had to be rewritten draw as the original ones did, in training and only there."""
    from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

    for block in ({}, {"block_fn": ParallelScalingBlock}):
        model = VisionTransformer(
            img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5, **block, **{option: 0.5}
        )
        args = (torch.randn(2, 3, 16, 16),)
        graph = trace(model, args)
        small = shrink(model, graph, half_plan(graph), check=False, example=args)
        with torch.no_grad():
            small.eval()
            assert torch.equal(small(*args), small(*args))
            small.train()
            draws = [small(*args) for _ in range(6)]
        assert any(not torch.equal(draws[0], d) for d in draws[1:]), (option, block)
