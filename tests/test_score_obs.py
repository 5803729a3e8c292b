"""The scores that look at a layer's output after its refit, against least squares by brute force."""

import numpy as np
import pytest
import torch

from test_score import activations, pairs, tokens
from toys import HEAD_DIM, HEADS, HIDDEN, PATCH, TOKENS, Toy, toy_graph
from vitprune.calibrate import Covariance, oas
from vitprune.score import METHODS, score
from vitprune.score.conformance import check_method
from vitprune.score.eliminate import BLOCK, eliminate
from vitprune.score.readers import Reader
from vitprune.score.reduce import normalise
from vitprune.score.types import Method, ScoreError, ScoreInfo


def left_over(weight: torch.Tensor, covariance: torch.Tensor, kept: list[int]) -> float:
    """Least of tr((W - V) C (W - V)^T) over V that is zero outside `kept`, by lstsq on samples with moment C."""
    x = torch.linalg.cholesky(covariance).T  # x^T x = C
    wanted = x @ weight.T
    found = torch.linalg.lstsq(x[:, kept], wanted).solution if kept else None
    rest = wanted if found is None else wanted - x[:, kept] @ found
    return float(rest.square().sum())


def seen(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and shrunk covariance of one layer of the toy."""
    x = activations(Toy(), path, tokens()).double()
    held = Covariance(x.shape[1], x.device)
    held.add(x)
    centred = x - x.mean(0)
    assert torch.allclose(held.matrix(True), centred.T @ centred / len(x), atol=1e-12)
    return Toy().get_submodule(path).weight.detach().double(), oas(held.matrix(True), len(x))


def test_obs_is_the_error_that_least_squares_leaves():
    got = score(toy_graph(), Toy(), "obs", batches=tokens(), kinds=["mlp", "v", "heads"])
    weight, covariance = seen("blocks.1.fc2")
    for unit in (0, 7, 63):
        want = left_over(weight, covariance, [i for i in range(HIDDEN) if i != unit])
        assert got["blocks.1.fc1:mlp"][0, unit] == pytest.approx(want, rel=1e-5)
    weight, covariance = seen("blocks.0.proj")
    width = HEADS * HEAD_DIM
    at = 2 * HEAD_DIM + 5
    want = left_over(weight, covariance, [i for i in range(width) if i != at])
    assert got["blocks.0.attn:v"][2, 5] == pytest.approx(want, rel=1e-5)
    want = left_over(weight, covariance, [i for i in range(width) if i // HEAD_DIM != 3])
    assert got["blocks.0.attn:heads"][0, 3] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("n", "lanes", "k"), [(BLOCK + 9, 1, 1), (12, 3, 1), (12, 1, 3), (8, 2, 2)])
def test_elimination_is_greedy_least_squares(n, lanes, k):
    generator = torch.Generator().manual_seed(n + k)
    x = (
        torch.randn(5 * n, n, generator=generator, dtype=torch.float64)
        @ torch.randn(n, n, generator=generator).double()
    )
    x[:, 1] = x[:, 0] * 2 + 1e-3 * x[:, 1]
    weight = torch.randn(5, n, generator=generator, dtype=torch.float64)
    covariance = x.T @ x / len(x)
    columns = torch.arange(n).view(lanes, n // lanes // k, k)
    got = eliminate([Reader(weight, torch.linalg.inv(covariance), columns)])
    kept, before = set(range(n)), 0.0
    floor = np.zeros(lanes)
    gone: set[tuple[int, int]] = set()
    steps = range(columns.shape[1]) if n < 20 else range(6)
    for _ in steps:
        for lane in range(lanes):
            options = {}
            for unit in range(columns.shape[1]):
                if (lane, unit) not in gone:
                    rest = sorted(kept - set(columns[lane, unit].tolist()))
                    options[unit] = left_over(weight, covariance, rest) - before
            best = min(options, key=options.__getitem__)
            floor[lane] = max(floor[lane], options[best])
            assert got[lane, best] == pytest.approx(floor[lane], rel=1e-5, abs=1e-9)
            gone.add((lane, best))
            kept -= set(columns[lane, best].tolist())
            before += options[best]


def test_of_two_units_that_say_the_same_one_is_kept():
    model, graph = Toy(), toy_graph()
    block = model.blocks[0]
    with torch.no_grad():
        block.fc1.weight[5], block.fc1.bias[5] = block.fc1.weight[2], block.fc1.bias[2]
        block.fc2.weight[:, [2, 5]] *= 3
    many = [torch.randn(512, TOKENS, PATCH, generator=torch.Generator().manual_seed(3))]
    energy, one, turn = (
        score(graph, model, m, batches=many, kinds=["mlp"])["blocks.0.fc1:mlp"][0]
        for m in ("energy", "obs", "refit-error")
    )
    assert (energy[[2, 5]] > np.median(energy)).all()
    assert (one[[2, 5]] < 0.05 * energy[[2, 5]]).all(), "each by itself can go"
    first, second = sorted(turn[[2, 5]])
    assert first < np.quantile(turn, 0.3) and second > np.quantile(turn, 0.9), "but not both"


def test_elimination_over_several_readers_adds_their_errors():
    got = score(toy_graph(), Toy(), "refit-error", batches=tokens())["residual"]
    sums = np.zeros(got.shape[1])
    for path in ("blocks.0.qkv", "blocks.0.fc1", "blocks.1.qkv", "blocks.1.fc1", "head"):
        weight, covariance = seen(path)
        for unit in range(got.shape[1]):
            sums[unit] += left_over(weight, covariance, [i for i in range(got.shape[1]) if i != unit])
    first = int(sums.argmin())
    assert got[0].argmin() == first
    assert got[0, first] == pytest.approx(sums[first], rel=1e-5)


def test_a_singular_covariance_is_damped():
    few = [tokens()[0][:2, :2]]
    for method in ("obs", "refit-error"):
        values = score(toy_graph(), Toy(), method, batches=[torch.cat([x] * 2) for x in few])
        assert all(np.isfinite(v).all() and (v >= 0).all() for v in values.values())


def test_reductions_of_what_reads_a_unit():
    """The residual stream is read by several layers: their costs are added, averaged, or the largest taken."""
    graph, model = toy_graph(), Toy()
    for name in ("energy", "variance", "obs"):
        total, mean, largest = (
            score(graph, model, name, reduction=how, batches=tokens())["residual"] for how in ("sum", "mean", "max")
        )
        readers = 5  # both blocks' attention and MLP, and the head
        assert mean == pytest.approx(total / readers, rel=1e-6)
        assert (mean <= largest).all() and (largest < total).all()
        assert score(graph, model, name, batches=tokens())["residual"] == pytest.approx(total), "the default"
        one = score(graph, model, name, reduction="max", batches=tokens())["blocks.0.fc1:mlp"]
        assert one == pytest.approx(score(graph, model, name, batches=tokens())["blocks.0.fc1:mlp"]), "one reader"


@pytest.mark.parametrize("name", ["taylor", "hessian"])
def test_reductions_of_gradient_terms(name):
    """Slices of a hidden unit: its row, its bias, and the column that reads it."""
    graph, model, unit = toy_graph(), Toy(), 7
    block, parts = model.blocks[1], {how: [] for how in ("sum", "mean", "max")}
    images = [(x, y) for x, y in pairs()]
    if name == "hessian":
        images = [(x[i : i + 1], y[i : i + 1]) for x, y in images for i in range(len(x))]
    for x, y in images:
        tensors = [block.fc1.weight, block.fc1.bias, block.fc2.weight]
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), tensors)
        terms = [(g * t).detach().double() for g, t in zip(grads, tensors, strict=True)]
        terms = [t.square() if name == "hessian" else t for t in terms]
        found = [float(terms[0][unit].sum()), float(terms[1][unit]), float(terms[2][:, unit].sum())]
        parts["sum"].append(abs(sum(found)))
        parts["mean"].append(abs(sum(found)) / 3)
        parts["max"].append(max(map(abs, found)))
    for how, values in parts.items():
        got = score(graph, model, name, reduction=how, batches=pairs())["blocks.1.fc1:mlp"][0, unit]
        assert got == pytest.approx(np.mean(values) / (2 if name == "hessian" else 1), rel=1e-4), how


def test_normalisation_and_reduction_are_choices():
    graph, model = toy_graph(), Toy()
    plain = score(graph, model, "magnitude-l2")["residual"]
    for how, by in (("mean", plain.mean()), ("max", plain.max()), ("sum", plain.sum())):
        assert score(graph, model, "magnitude-l2", normalisation=how)["residual"] == pytest.approx(plain / by)
    standard = score(graph, model, "magnitude-l2", normalisation="standard")["residual"]
    assert (standard.mean(), standard.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert normalise({"a": np.zeros((1, 3))}, "mean")["a"].tolist() == [[0, 0, 0]]
    block = model.blocks[1]
    parts = [block.fc1.weight[7], block.fc1.bias[7:8], block.fc2.weight[:, 7]]
    norms = [float(p.detach().double().square().mean().sqrt()) for p in parts]
    total = float(torch.cat(parts).detach().double().square().sum().sqrt())
    for how, want in (("mean", np.mean(norms)), ("max", max(norms)), ("sum", total)):
        got = score(graph, model, "magnitude-l2", reduction=how)["blocks.1.fc1:mlp"][0, 7]
        assert got == pytest.approx(want, rel=1e-6), how
    for name in ("random", "refit-error", "output-error"):
        with pytest.raises(
            ScoreError, match=f"method '{name}' scores whole units and takes no reduction, but got 'max'"
        ):
            score(graph, model, name, reduction="max", batches=pairs())
    with pytest.raises(ScoreError, match="reduction must be one of default, sum, mean, max, but got 'median'"):
        score(graph, model, "magnitude-l2", reduction="median")
    with pytest.raises(ScoreError, match="normalise must be one of none, .*, but got 'l2'"):
        score(graph, model, "magnitude-l2", normalisation="l2")


@pytest.mark.parametrize(
    ("flag", "rule"), [("follows", "do not follow its units"), ("unscaled", "change with a scale")]
)
def test_conformance_finds_scores_that_stay_or_scale(flag, rule):
    name = "random" if flag == "follows" else "magnitude-l2"
    info = ScoreInfo("mine", "faulty", "", follows=flag == "follows", unscaled=flag == "unscaled")
    with pytest.raises(AssertionError, match=rule):
        check_method(Method(info, METHODS[name].compute), toy_graph(), Toy(), batches=pairs())


def test_conformance_scales_every_group() -> None:
    """A method that goes with the scale of one group, whichever it is, is found."""
    graph = toy_graph()
    groups = [g.name for g in graph.groups if g.kind == "v"]
    assert len(groups) >= 2
    fair, scaled = METHODS["random"].compute, METHODS["magnitude-l2"].compute
    for name in groups:
        info = ScoreInfo("mine", "faulty in one group", "", follows=False, unscaled=True)

        def compute(inputs, name=name):
            return {**fair(inputs), name: scaled(inputs)[name]}

        with pytest.raises(AssertionError, match=f"the scores of {name} change with a scale"):
            check_method(Method(info, compute), graph, Toy(), batches=pairs())
