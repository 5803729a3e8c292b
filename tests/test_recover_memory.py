"""More images than fit: accumulated gradients and forgotten activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitprune
from training_parts import BASE, Counter, quarters, small
from vitprune.data import TensorBatches
from vitprune.models import load
from vitprune.preprocessing import Preprocessing
from vitprune.recover import TrainError, fit
from vitprune.recover.memory import checkpointing
from vitprune.trace import trace

VIT = "timm:vit_tiny_patch16_224?img_size=8&patch_size=4&in_chans=1&embed_dim=32&depth=3&num_heads=2&num_classes=4"
SWIN = (
    "timm:swin_tiny_patch4_window7_224?img_size=32&window_size=4&in_chans=1&embed_dim=16&depths=[1,1]"
    "&num_heads=[2,2]&num_classes=4"
)


def plain(batch: int) -> TensorBatches:
    """The same images in the same order, without augmentation."""
    made = quarters()
    return TensorBatches(
        made._images, made._labels, Preprocessing((8, 8), (0.5,), (0.5,), "bilinear", 1), batch_size=batch, shuffle=True
    )


def test_accumulated_gradients_are_those_of_the_larger_batch() -> None:
    settings = replace(BASE, clip=0.5, weight_decay=0.1, ema=0.9)
    results, losses = [], []
    for batch, passes in ((32, 1), (16, 2), (8, 4)):
        model = small()
        model.drop.p = 0.0
        history = fit(
            model, plain(batch), quarters(40, shuffle=False), replace(settings, batch_size=batch, accumulate=passes)
        )
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
        losses.append([e.loss for e in history.epochs])
    for other, loss in zip(results[1:], losses[1:], strict=True):
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)
        assert loss == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    hook = Counter()
    fit(small(), plain(16), quarters(40, shuffle=False), replace(BASE, epochs=2, accumulate=4), hook=hook)
    forward = [step for name, step in hook.calls if name == "before"]
    assert forward == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2
    assert [step for name, step in hook.calls if name == "step"] == [0, 1, 2, 3]


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass in training keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = vitprune.models.logits(model(x))
    out.sum().backward()
    return sum(seen.values())


@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_checkpointing_keeps_less_and_changes_nothing(spec: str) -> None:
    prep = Preprocessing((8, 8), (0.5,), (0.5,), "bilinear", 1)
    x = torch.randn(4, 1, 8, 8) if spec == VIT else torch.randn(4, 1, 32, 32)
    model = load(spec).model
    before = kept(model, x)
    with checkpointing(model, True):
        within = kept(model, x)
    assert within < 0.6 * before and kept(model, x) == before
    if spec == VIT:
        results = []
        for wanted in (False, True):
            model = load(VIT + "&proj_drop_rate=0.2").model
            made = quarters()
            images = TensorBatches(made._images, made._labels, prep, batch_size=32, shuffle=True)
            settings = replace(BASE, epochs=2, grad_checkpointing=wanted)
            fit(model, images, quarters(40, shuffle=False), settings)
            results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            assert not getattr(model, "grad_checkpointing", True)
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amp", ["no", "bf16"])
def test_what_is_computed_again_is_what_was_computed(amp: str) -> None:
    """In bf16 on the CPU attention takes plain matmuls, in both passes."""
    results = []
    for wanted in (False, True):
        model = load(VIT).model
        fit(model, quarters(), quarters(40, shuffle=False), replace(BASE, epochs=1, amp=amp, grad_checkpointing=wanted))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_checkpointing_of_transformers() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=4
    )
    model = ViTForImageClassification(config)
    x = torch.randn(4, 3, 8, 8)
    before = kept(model, x)
    with checkpointing(model, True):
        assert kept(model, x) < 0.6 * before
    assert kept(model, x) == before


class Refuses(nn.Linear):
    """As models of timm that cannot."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuses."""
        assert not enable, "gradient checkpointing not supported"


def test_models_without_checkpointing_are_told() -> None:
    with (
        pytest.raises(TrainError, match=r"Small has neither set_grad_checkpointing nor .*; train without it"),
        checkpointing(small(), True),
    ):
        raise AssertionError
    with (
        pytest.raises(TrainError, match=r"Refuses has no gradient checkpointing \(gradient checkpointing not"),
        checkpointing(Refuses(2, 2), True),
    ):
        raise AssertionError
    with checkpointing(small(), False):
        pass


def test_a_rewritten_forward_that_would_ignore_it_is_named() -> None:
    origin = vitprune.load_model(VIT)
    graph = trace(origin.model, (vitprune.models.example(origin.preprocessing),))
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.5", kinds=("mlp", "qk", "v"))
    small_model: Any = vitprune.shrink(origin, graph, plan)
    with checkpointing(small_model, True):  # the root, which looks at the switch, runs its own code
        assert kept(small_model, torch.randn(2, 1, 8, 8)) > 0
    small_model.forward = small_model.forward
    with (
        pytest.raises(TrainError, match="do nothing in the model, whose forward was rewritten"),
        checkpointing(small_model, True),
    ):
        raise AssertionError
    assert not small_model.grad_checkpointing
