"""The models that the engine is tested on are what they claim: they run, and no value hides an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo import CASES, LEFT_OUT, Case, images, randomise_

CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))

LISTED = (
    "timm/vit_tiny", "timm/vit_tiny_qk_norm", "timm/vit_tiny_avg", "timm/vit_parallel_scaling",
    "timm/vit_parallel_things", "timm/deit_tiny_distilled", "timm/deit3_small", "timm/beit", "timm/beitv2",
    "timm/eva02_tiny", "timm/dinov2", "timm/dinov2_reg4", "timm/dinov3", "timm/siglip", "timm/rope_mixed",
    "timm/cait_xxs24", "timm/swin_tiny", "timm/swinv2", "timm/xcit_nano", "timm/crossvit", "timm/convit",
    "timm/mvitv2", "timm/hiera", "timm/mobilevit", "timm/mixer", "hf/vit", "hf/deit", "hf/deit_teacher",
    "hf/beit_own_bias", "hf/beit_shared_bias", "hf/dinov2", "hf/dinov2_swiglu", "hf/dinov2_registers", "hf/dinov3",
    "hf/dinov3_gated", "hf/swin", "hf/siglip", "hf/clip", "hf/vitmae", "torchvision/vit_b_16", "handwritten/picture",
)  # fmt: skip
BEYOND = (
    "hf/vitdet", "hf/sam", "timm/samvit", "timm/volo", "timm/tnt", "timm/davit", "timm/coat", "timm/maxvit",
    "hf/data2vec", "hf/vit_msn", "hf/swinv2", "hf/hiera", "hf/levit", "timm/levit",
)  # fmt: skip


def of(stem: str) -> list[Case]:
    """Returns the cases called `stem`, with or without a choice of attention."""
    return [case for case in CASES.values() if case.name in (stem, f"{stem}/fused", f"{stem}/eager")]


@pytest.mark.parametrize(("stems", "listed"), [(LISTED, True), (BEYOND, False)], ids=["listed", "beyond"])
def test_every_model_of_the_matrix_is_there(stems: tuple[str, ...], listed: bool) -> None:
    found = {stem: [case.listed for case in of(stem)] for stem in stems}
    assert found == {stem: [listed] * (len(of(stem)) or 1) for stem in stems}


def test_a_choice_of_attention_comes_in_pairs() -> None:
    known = CASES | LEFT_OUT
    fused = {name.removesuffix("/fused") for name in known if name.endswith("/fused")}
    assert fused == {name.removesuffix("/eager") for name in known if name.endswith("/eager")}


@CASE
def test_forward(case: Case) -> None:
    model = case.model()
    assert not any(module.training for module in model.modules())
    flat = [name for name, value in model.named_parameters() if not torch.all(value != 0)]
    assert flat == []
    with torch.no_grad():
        outputs = {batch: case.out(model(*case.example(batch))) for batch in (1, 2, 5)}
    for batch, output in outputs.items():
        assert output.shape[0] == batch
        assert torch.isfinite(output).all()
        torch.testing.assert_close(output[:1], outputs[1], rtol=1e-3, atol=1e-4)
    assert 0.1 < outputs[5].std() < 10
    assert (outputs[2][0] - outputs[2][1]).abs().max() > 1e-3 * outputs[2].abs().max()


def test_randomise_is_seeded_and_spares_structural_buffers() -> None:
    def small() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        model.register_buffer("table", torch.arange(3.0))
        return model.eval()

    first, second, third = (randomise_(small(), seed, images(8)(2)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], third["0.weight"])
    assert torch.equal(first["table"], torch.arange(3.0))
    assert not torch.equal(first["1.running_var"], torch.ones(4))
    assert torch.all(first["1.running_var"] > 0)
