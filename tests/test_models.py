"""Models by name: specs, loading, skeletons, checkpoints that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model_parts import TINY, same
from vitprune.errors import ModelError
from vitprune.models import ModelSource, Preprocessing, example, load, logits, parse, skeleton


class Toy(nn.Module):
    """A model of the user's own."""

    def __init__(self, width: int = 8, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_size = 16
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) -> (B, num_classes)."""
        out: Tensor = self.head(self.patch(x).mean((2, 3)))
        return out


def not_a_module() -> int:
    """A factory that returns something else."""
    return 3


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_tiny_patch16_224",
        "timm:vit_tiny_patch16_224?img_size=28&global_pool=avg&class_token=false&mean=[0.5]",
        "hf:facebook/dinov2-small?attn=eager",
        "torchvision:vit_b_16?checkpoint=/tmp/a b.safetensors",
        "module:package.mod:factory?width=96",
        "shipped:fmnist-vit",
    ],
)
def test_source_survives_text_and_json(spec: str) -> None:
    source = parse(spec)
    assert parse(str(source)) == source
    assert ModelSource.from_json(json.loads(json.dumps(source.to_json()))) == source


def test_options_are_typed() -> None:
    options = parse("timm:a?i=3&f=0.5&t=true&F=False&n=null&s=avg&l=[1,2]").options
    assert options == {"i": 3, "f": 0.5, "t": True, "F": False, "n": None, "s": "avg", "l": [1, 2]}


def test_saved_folder_is_recognised_but_not_loaded_here(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert parse(str(tmp_path)) == ModelSource("folder", str(tmp_path))
    with pytest.raises(ModelError, match="vitprune.load"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vit_tiny_patch16_224", "did you mean timm:vit_tiny_patch16_224"),
        ("timm:", "MODEL must be one of"),
        ("timm:a?b", "name=value"),
        ("module:package", "a module and a callable"),
        ("timm:vit_tiny_patch16_22", "nearest: .*vit_tiny_patch16_224"),
        ("torchvision:vit_b_17", "nearest: .*vit_b_16"),
        ("timm:vit_tiny_patch16_224?widht=3", "could not build.*widht"),
        ("timm:vit_tiny_patch16_224?num_classes=-1", "at least 0"),
        ("timm:vit_tiny_patch16_224?std=0", "out of range"),
        ("shipped:mnist", "only fmnist-vit"),
        ("module:no.such.module:f", "cannot be imported"),
        ("module:test_models:toy", "nearest: .*Toy"),
        ("module:test_models:not_a_module", "must return a torch.nn.Module"),
        ("module:test_models:Toy?depth=3", "could not be called"),
        ("hf:./nowhere", "no folder"),
    ],
)
def test_bad_names_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(spec)


@pytest.mark.parametrize(
    "spec",
    [
        TINY,
        "timm:eva02_tiny_patch14_224?img_size=28&embed_dim=48&depth=1&num_heads=2&num_classes=4",
        "timm:swin_tiny_patch4_window7_224?img_size=56&embed_dim=16&depths=[1,1]&num_heads=[1,2]&window_size=7",
        "torchvision:vit_b_16?image_size=32",
        "module:test_models:Toy?width=12",
    ],
)
def test_skeleton_has_structure_and_buffers(spec: str) -> None:
    same(load(spec))


def test_skeleton_draws_nothing() -> None:
    before = torch.get_rng_state()
    bare = skeleton(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    weights = dict(bare.named_parameters())
    assert float(weights["blocks.0.attn.qkv.weight"].detach().abs().sum()) == 0
    assert float(weights["blocks.0.norm1.weight"].detach().sum()) == 32


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = load(TINY), load(TINY), load(TINY, seed=1)
    key = "blocks.0.mlp.fc1.weight"
    assert torch.equal(a.model.state_dict()[key], b.model.state_dict()[key])
    assert not torch.equal(a.model.state_dict()[key], c.model.state_dict()[key])
    assert torch.equal(torch.get_rng_state(), before)
    assert any("random" in note for note in a.notes)


def test_preprocessing_follows_the_build() -> None:
    loaded = load(
        "timm:vit_tiny_patch16_224?img_size=28&patch_size=4&in_chans=1&embed_dim=32&depth=1&num_heads=2&std=0.3"
    )
    assert loaded.preprocessing == Preprocessing((28, 28), (0.5,), (0.3,), "bicubic", 1, 0.9)
    assert example(loaded.preprocessing, 3).shape == (3, 1, 28, 28)
    own = load("module:test_models:Toy")
    assert own.preprocessing.size == (16, 16) and own.preprocessing.channels == 1
    assert "assumed" in own.notes[0]


def test_logits_of_many_outputs() -> None:
    from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

    t, u = torch.ones(2, 3), torch.zeros(2, 3)
    outputs = (
        t,
        (t, u),
        [t],
        {"logits": t, "a": u},
        ImageClassifierOutput(logits=t),
        BaseModelOutput(last_hidden_state=t),
    )
    assert all(logits(o) is t for o in outputs)
    with pytest.raises(ModelError, match="returns int"):
        logits(3)


def test_shipped_model_loads_and_takes_another_head() -> None:
    loaded = load("shipped:fmnist-vit")
    assert loaded.num_classes == 10 and loaded.notes == () and loaded.preprocessing.size == (28, 28)
    assert sum(p.numel() for p in loaded.model.parameters()) == 678_730
    same(loaded)
    other = load("shipped:fmnist-vit", num_classes=4)
    assert other.num_classes == 4 and "head is new" in other.notes[0]
