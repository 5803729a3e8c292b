"""Distillation by token features: which layers, the loss by hand, maps between widths, resuming."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training_parts import BASE, equal, quarters
from training_parts import small as without_tokens
from vitprune.models import load, logits
from vitprune.progress import Lines
from vitprune.recover import TrainError, TrainSettings, fit
from vitprune.recover.features import TokenFeatures, feature_loss
from vitprune.recover.tokens import aligned, is_tokens, last_tokens, outputs, to_tokens

VIT = "timm:vit_tiny_patch16_224?img_size=8&in_chans=1&patch_size={patch}&embed_dim={dim}&depth=2&num_heads=2"
ON = replace(BASE, distill_weight=0.0, feature_weight=1.0)


def vit(seed: int = 0, dim: int = 16, patch: int = 4, classes: int = 4) -> nn.Module:
    """A ViT of two blocks for 8 x 8 images, with weights by seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load(VIT.format(dim=dim, patch=patch) + f"&num_classes={classes}").model


def images(size: int = 8, channels: int = 1, count: int = 2) -> Tensor:
    """Noise."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def distance(student: nn.Module, teacher: nn.Module) -> float:
    """The loss between last tokens of equally wide models, computed without any hook."""
    x = next(iter(quarters(40, shuffle=False)))[0]
    with torch.no_grad():
        a, b = (m.eval().forward_features(x) for m in (student, teacher))  # type: ignore[operator]
    a, b = ((t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() for t in (a, b))
    return float(((a - b) ** 2).mean())


def test_the_loss_by_hand() -> None:
    student, teacher = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[5.0, 1.0]]])
    assert float(feature_loss(student, teacher)) == pytest.approx(4.0, rel=1e-4)  # (-1, 1) and (1, -1)
    assert float(feature_loss(3 * student + 7, student)) == pytest.approx(0, abs=1e-4)


def test_it_teaches_without_scores_and_leaves_the_teacher_alone() -> None:
    teacher, student = vit(1, classes=7), vit(2)
    noise = torch.Generator().manual_seed(0)
    for name, weights in teacher.state_dict().items():
        if "head" not in name:
            student.state_dict()[name].copy_(weights + 0.01 * torch.randn(weights.shape, generator=noise))
    before = distance(student, teacher)
    weights = {k: v.clone() for k, v in teacher.state_dict().items()}
    fit(student, quarters(), quarters(40, shuffle=False), replace(ON, epochs=8, feature_weight=4.0), teacher=teacher)
    assert distance(student, teacher) < 0.5 * before
    assert equal(weights, teacher.state_dict())
    assert not any(m._forward_hooks for model in (student, teacher) for m in model.modules())


def test_off_is_off() -> None:
    teacher = vit(1)
    results = []
    for weight in (0.0, 1e-12, 1.0):
        student = vit(2)
        settings = replace(BASE, epochs=1, feature_weight=weight)
        fit(student, quarters(), quarters(40, shuffle=False), settings, teacher=teacher)
        results.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_maps_between_widths_learn_and_resume(tmp_path: Path, optimizer: str) -> None:
    teacher, settings = vit(1, dim=24), replace(ON, optimizer=optimizer, ema=0.9, grad_checkpointing=True)

    class Stop:
        def __init__(self, at: int) -> None:
            self.at = at

        def before_forward(self, step: int) -> None:
            if step == self.at:
                raise KeyboardInterrupt

        def after_backward(self, step: int) -> None: ...

        def after_step(self, step: int) -> None: ...

    def run(folder: Path | None, stop: int = -1) -> nn.Module:
        student, val = vit(2), quarters(40, shuffle=False)
        fit(student, quarters(), val, settings, teacher=teacher, checkpoint_dir=folder, hook=Stop(stop))
        return student

    straight = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 13)
    (folder,) = tmp_path.iterdir()
    from safetensors.torch import load_file

    saved = load_file(folder / "features.safetensors")
    fresh = TokenFeatures(vit(2), teacher, images(), settings).state_dict()
    assert {k: tuple(v.shape) for k, v in saved.items()} == {"maps.0.weight": (24, 16), "maps.0.bias": (24,)}
    assert not equal(saved, fresh)
    assert equal(run(tmp_path).state_dict(), straight.state_dict())
    assert set(straight.state_dict()) == set(vit(2).state_dict())


def test_maps_begin_with_least_squares() -> None:
    """Against lstsq on tokens taken without hooks."""
    teacher, student = vit(1, dim=24), vit(2)
    made = TokenFeatures(student, teacher, images(), ON)
    x = images(count=400)
    with made.open(), torch.no_grad():
        _ = teacher(x), student(x)
        before = float(made())
        made.fit_maps_(iter([x[:250], x[250:]]))
    with made.open(), torch.no_grad():
        _ = teacher(x), student(x)
        after = float(made())
        own, wanted = (m.forward_features(x).flatten(0, 1).double() for m in (student, teacher))  # type: ignore[operator]
    wanted = nn.functional.layer_norm(wanted, (24,))
    ones = torch.cat([own, torch.ones_like(own[:, :1])], 1)
    expected = torch.linalg.lstsq(ones, wanted).solution
    (line,) = made.maps
    assert isinstance(line, nn.Linear)
    found, least = ((found - wanted).square().mean() for found in (line(own.float()).double(), ones @ expected))
    assert least <= found < 1.01 * least
    assert after < 0.6 * before


def test_equal_widths_have_a_map_where_the_basis_is_another() -> None:
    """A rotated twin, whose tokens say the same in another basis, begins at no loss; a twin as it is needs no map."""
    teacher, x = vit(1), images(count=300)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]

    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.turn = copy.deepcopy(teacher), nn.Linear(16, 16, bias=False)
            self.turn.weight.data.copy_(basis)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.turn(self.inner.forward_features(x)).mean(1)  # type: ignore[operator]
            return scores

    found = []
    for student, layers in ((Rotated(), "turn=norm"), (copy.deepcopy(teacher), "norm")):
        made = TokenFeatures(student, teacher, images(), replace(ON, feature_layers=layers))
        with torch.no_grad():
            made.fit_maps_([x])
            with made.open():
                _ = teacher(x), student(x)
                found.append((type(made.maps[0]), float(made())))
    assert [kind for kind, _ in found] == [nn.Linear, nn.Identity]
    assert found[0][1] < 0.02 and found[1][1] < 1e-6


def test_named_layers_are_paired(capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = vit(2), vit(1, dim=24)
    made = TokenFeatures(student, teacher, images(), replace(ON, feature_layers="blocks.*, patch_embed=blocks.0"))
    assert made.layers == [("blocks.0", "blocks.0"), ("blocks.1", "blocks.1"), ("patch_embed", "blocks.0")]
    wrapped = nn.Module()
    wrapped.model = teacher  # type: ignore[assignment]
    wrapped.forward = lambda x: teacher(x)  # type: ignore[method-assign]
    again = TokenFeatures(student, wrapped, images(), replace(ON, feature_layers="blocks.*"))
    assert again.layers == [("blocks.0", "model.blocks.0"), ("blocks.1", "model.blocks.1")]
    said = io.StringIO()
    settings = replace(ON, epochs=1, feature_layers="blocks.1=blocks.*[!0]")
    fit(student, quarters(), quarters(40, shuffle=False), settings, teacher=teacher, progress=Lines(said))
    assert "token features: blocks.1 like blocks.1" in said.getvalue()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blocks.*=blocks.1", r"'blocks.\*=blocks.1' matches 2 modules of the student and 1 of the teacher; pair them"),
        ("stages.*", r"no module of the student that gives tokens matches 'stages.\*'"),
        ("norm=nothing", "no module of the teacher that gives tokens matches 'nothing'"),
        ("head", "no module of the student that gives tokens matches 'head'"),
    ],
)
def test_layers_that_do_not_pair(layers: str, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        TokenFeatures(vit(2), vit(1), images(), replace(ON, feature_layers=layers))


def test_what_does_not_fit_is_said() -> None:
    def run(student: nn.Module, teacher: nn.Module | None, settings: TrainSettings) -> None:
        fit(student, quarters(), quarters(40, shuffle=False), settings, teacher=teacher)

    with pytest.raises(TrainError, match="feature_weight 1 needs a teacher; name one, or set it to 0"):
        run(vit(), None, ON)
    with pytest.raises(TrainError, match="the teacher scores 7 classes and the student 4, .*finetune --new-head"):
        run(vit(), vit(1, classes=7), BASE)
    with pytest.raises(TrainError, match="Small has no module that gives tokens; name one by feature_layers"):
        run(without_tokens(), vit(1), ON)
    with pytest.raises(TrainError, match="feature_weight must be not negative, but got -1"):
        replace(ON, feature_weight=-1.0)


SWIN = "timm:swin_tiny_patch4_window7_224?img_size=32&window_size=4&embed_dim=16&depths=[1,1]&num_heads=[2,2]"
FAMILIES: list[tuple[str, int, int, str]] = [
    (VIT.format(dim=16, patch=4), 8, 1, "norm"),
    (VIT.format(dim=16, patch=4) + "&global_pool=avg", 8, 1, "norm"),
    (SWIN, 32, 3, "norm"),
    ("timm:vit_base_patch16_siglip_224?img_size=32&embed_dim=16&depth=2&num_heads=2", 32, 3, "norm"),
    ("timm:cait_xxs24_224?img_size=32&embed_dim=16&depth=2&num_heads=2", 32, 3, "blocks.1"),
]


@pytest.mark.parametrize(("spec", "size", "channels", "wanted"), FAMILIES, ids=lambda v: str(v)[:24])
def test_last_tokens_of_families(spec: str, size: int, channels: int, wanted: str) -> None:
    model, x = load(spec).model, images(size, channels)
    assert last_tokens(model, outputs(model, x), 2) == wanted
    twin = TokenFeatures(model, model, x, ON)
    with twin.open():
        model(x)
        assert twin().item() == pytest.approx(0, abs=1e-6)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).eval()


def hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    return SwinForImageClassification(config).eval()


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32).eval()


@pytest.mark.parametrize("make", [hf_vit, hf_swin, torchvision_vit])
def test_families_teach_each_other(make: Callable[[], nn.Module]) -> None:
    teacher, x = make(), images(32, 3)
    student = load(SWIN).model
    found = last_tokens(teacher, outputs(teacher, x), 2)
    assert found.rpartition(".")[2] in ("layernorm", "norm", "encoder")  # torchvision's encoder ends with its norm
    made = TokenFeatures(student, teacher, x, ON)
    with made.open():
        teacher(x)
        logits(student(x))
        loss = made()
    loss.backward()
    assert 0 < loss.item() < 4 and all(p.grad is not None for p in made.parameters())


def test_grids_and_prefix_tokens() -> None:
    grid = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 3)
    with_class = torch.cat((torch.full((1, 1, 3), 99.0), grid), 1)
    a, b = aligned(with_class, grid, True)
    assert torch.equal(a, grid) and torch.equal(b, grid)
    a, b = aligned(grid[:, :4], with_class, True)  # 2 x 2 against 4 x 4
    assert a.shape == b.shape == (1, 4, 3)
    assert torch.allclose(b.flip(1) + b, torch.full_like(b, 15.0), atol=1e-4)  # the ramp stays centred
    assert aligned(with_class, with_class, False)[0].shape == (1, 17, 3)
    for counts, square in (((17, 16), False), ((15, 16), True)):
        tokens = [torch.zeros(1, n, 2) for n in counts]
        with pytest.raises(TrainError, match=rf"has {counts[0]} tokens and the teacher {counts[1]}, .*not square"):
            aligned(tokens[0], tokens[1], square)


def test_a_layer_that_is_not_called_in_training_is_named() -> None:
    student = vit(2)
    chain = replace(ON, grad_checkpointing=True, feature_layers="blocks")  # timm calls the blocks one by one
    with pytest.raises(TrainError, match="blocks gave no token features in training; name other layers"):
        fit(student, quarters(), quarters(40, shuffle=False), chain, teacher=vit(1))


def test_layouts() -> None:
    x = torch.randn(2, 4, 4, 6)
    assert torch.equal(to_tokens(x), x.flatten(1, 2))
    assert torch.equal(to_tokens(x.permute(0, 3, 1, 2)), x.flatten(1, 2))
    with pytest.raises(TrainError, match=r"\(2, 4, 4, 4\) might have their channels first or last"):
        to_tokens(torch.randn(2, 4, 4, 4))
    shapes = [((2, 5, 3), True), ((2, 1, 3), False), ((2, 3, 1), False), ((3, 5, 3), False), ((2, 6, 1, 1), False)]
    assert [is_tokens(shape, 2) for shape, _ in shapes] == [wanted for _, wanted in shapes]
