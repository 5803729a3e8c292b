"""How the output feels each layer, against gradients taken another way and against what really changes."""

import numpy as np
import pytest
import torch
from torch import nn

from test_score import tokens
from test_score_obs import left_over
from toys import CLASSES, DIM, HEAD_DIM, HEADS, HIDDEN, PATCH, TOKENS, Toy, toy_graph
from vitprune.calibrate import Covariance, Sensitivity, oas, sensitivities
from vitprune.calibrate.sensitivity import TOGETHER
from vitprune.score import score
from vitprune.score.types import ScoreError
from zoo import CASES


def felt_by_hooks(model: nn.Module, x: torch.Tensor, path: str, draws: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(channels, gates, positions) of one layer, a backward pass per image and draw. x: (N, ...), draws: (K, N, C)."""
    layer, held = model.get_submodule(path), []
    handle = layer.register_forward_hook(lambda _m, _a, y: held.append(y))
    sums = [0.0, 0.0, 0.0]
    for i in range(len(x)):
        for v in draws[:, i]:
            held.clear()
            z = model(x[i : i + 1])
            (g,) = torch.autograd.grad((z[0] * v).sum(), held)
            g, y = g[0].double(), held[0][0].detach().double()
            for k, value in enumerate((g.square().sum(0), (g * y).sum(0).square(), g.square().sum(1))):
                sums[k] = sums[k] + value / (len(x) * len(draws))
    handle.remove()
    return tuple(sums)


def test_sensitivities_are_squared_gradients_of_random_projections():
    model, x = Toy(), torch.randn(2 * TOGETHER, TOKENS, PATCH, generator=torch.Generator().manual_seed(1))
    found = sensitivities(model, [x[:5], x[5:], x[:3]], 3, images=2 * TOGETHER, draws=2)
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(TOGETHER, CLASSES, generator=generator) for _ in range(4)]
    draws = torch.stack([torch.cat([parts[0], parts[2]]), torch.cat([parts[1], parts[3]])])
    assert set(found) == {n + ".weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for path in ("blocks.0.qkv", "blocks.1.fc2", "embed"):
        channels, gates, positions = felt_by_hooks(model, x, path, draws)
        got = found[f"{path}.weight"]
        torch.testing.assert_close(got.channels, channels, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(got.gates, gates, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(got.positions, positions, rtol=1e-4, atol=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_a_gate_is_what_the_output_moves_by():
    model, x = Toy(), torch.randn(2 * TOGETHER, TOKENS, PATCH, generator=torch.Generator().manual_seed(1))
    found = sensitivities(model, [x], images=2 * TOGETHER, draws=300)["blocks.0.qkv.weight"]
    step, row = 1e-3, HEADS * HEAD_DIM + 2 * HEAD_DIM + 5  # a key dim
    with torch.no_grad():
        want = model(x)
        model.blocks[0].qkv.weight[row] *= 1 - step
        model.blocks[0].qkv.bias[row] *= 1 - step
        moved = ((model(x) - want).double() / step).square().sum(1).mean()
    assert float(found.gates[row]) == pytest.approx(float(moved), rel=0.15)
    other = row - HEADS * HEAD_DIM  # the query dim that it is multiplied by: both stand or fall together
    assert float(found.gates[other]) == pytest.approx(float(found.gates[row]), rel=1e-3)


def test_output_error_is_the_error_of_the_class_scores():
    """The last layer before the mean over tokens and the head: there the output's error is known in closed form."""
    some = tokens()[:2]
    model, x = Toy(), torch.cat(some)
    got = score(toy_graph(), model, "output-error", batches=some, kinds=["mlp"])["blocks.1.fc1:mlp"][0]
    inner: list[torch.Tensor] = []
    handle = model.blocks[1].fc2.register_forward_pre_hook(lambda _, given: inner.append(given[0].detach()))
    model(x)
    handle.remove()
    held = Covariance(HIDDEN, x.device)
    held.add(inner[0])
    felt = sensitivities(model, some)["blocks.1.fc2.weight"]
    exact = model.head.weight.detach().double().square().sum(0) / TOKENS
    assert float((felt.channels / exact).mean()) == pytest.approx(1, rel=0.35)  # few draws
    weight = model.blocks[1].fc2.weight.detach().double() * felt.channels.sqrt().unsqueeze(1)
    covariance = oas(held.matrix(True), held.count)
    alone = [left_over(weight, covariance, [i for i in range(HIDDEN) if i != unit]) for unit in range(HIDDEN)]
    assert int(np.argmin(got)) == int(np.argmin(alone))
    assert got.min() == pytest.approx(min(alone), rel=1e-4)


def test_positions_count_by_what_the_output_feels():
    """A model that looks at its first token alone: the others count nothing, whichever way the tensor lies."""

    class First(nn.Module):
        def __init__(self, tokens_first: bool) -> None:
            super().__init__()
            self.fc = nn.Linear(PATCH, DIM)
            self.head = nn.Linear(DIM, CLASSES)
            self.tokens_first = tokens_first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x.transpose(0, 1)).transpose(0, 1) if self.tokens_first else self.fc(x)
            out: torch.Tensor = self.head(y[:, 0])
            return out

    for tokens_first in (False, True):
        felt = sensitivities(First(tokens_first), [torch.randn(TOGETHER, TOKENS, PATCH)])["fc.weight"]
        assert felt.image_dim == int(tokens_first)
        shape = (TOKENS, 20, PATCH) if tokens_first else (20, TOKENS, PATCH)
        weights = felt.weights(torch.zeros(shape))
        first = weights[0] if tokens_first else weights[:, 0]
        assert torch.equal(first, torch.full((20,), float(TOKENS), dtype=torch.float64))
        assert float(weights.sum()) == pytest.approx(20 * TOKENS)
        assert felt.weights(torch.zeros(5, PATCH)) is None
    assert Sensitivity(torch.ones(2), torch.ones(2), None, 0).weights(torch.zeros(4, 2)) is None


@pytest.mark.parametrize(
    "name", ["timm/swin_tiny/fused", "torchvision/vit_b_16", "timm/mobilevit/fused", "timm/davit/fused"]
)
def test_every_layer_that_the_class_scores_depend_on_is_felt(name):
    case = CASES[name]
    (x,) = case.example(2 * TOGETHER)
    found = sensitivities(case.model(), [x])
    linear = {n for n, m in case.model().named_modules() if isinstance(m, nn.Linear) and "pos" not in n}
    assert {f"{n}.weight" for n in linear} <= set(found)
    assert all(bool(torch.isfinite(f.channels).all()) and bool(f.channels.any()) for f in found.values())
    again = sensitivities(case.model(), [x])
    assert all(torch.equal(again[n].channels, f.channels) for n, f in found.items())


def test_few_images_and_none():
    model = Toy()
    assert set(sensitivities(model, tokens()[2:])) == set(sensitivities(model, tokens()))
    assert sensitivities(model, []) == {}
    with pytest.raises(ScoreError, match="need images"):
        score(toy_graph(), model, "output-error", batches=[])


def test_a_model_without_gradients_is_refused():
    class Deaf(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1, keepdim=True).float()

    with pytest.raises(ScoreError, match="needs gradients through the model, but got none; take 'refit-error'"):
        score(toy_graph(), Deaf(), "output-error", batches=tokens())
