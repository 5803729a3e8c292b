"""Models of transformers, from folders."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_parts import Bomb, same
from vitprune.errors import ModelError
from vitprune.models import ModelSource, Preprocessing, example, load, logits, skeleton


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small transformers folders: a ViT classifier, a Dinov2 backbone, a CLIP classifier."""
    from transformers import (
        CLIPConfig,
        CLIPForImageClassification,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTForImageClassification,
    )

    root = tmp_path_factory.mktemp("hf")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig(**small, intermediate_size=64, num_labels=7)).save_pretrained(root / "vit")
        Dinov2Model(Dinov2Config(**small)).save_pretrained(root / "dinov2")
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        clip = CLIPConfig(vision_config=small | {"intermediate_size": 64}, text_config=text, num_labels=7)
        CLIPForImageClassification(clip).save_pretrained(root / "clip")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    (root / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_hf_classifier(hf: Path, attn: str) -> None:
    loaded = load(f"hf:{hf / 'vit'}?attn={attn}")
    assert loaded.num_classes == 7 and loaded.notes == ()
    assert loaded.preprocessing == Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 3, 1.0, "squash")
    assert loaded.model.config._attn_implementation == attn  # type: ignore[union-attr]
    same(loaded)


def test_hf_skeleton_needs_no_folder(hf: Path, tmp_path: Path) -> None:
    loaded = load(f"hf:{hf / 'vit'}", num_classes=5)
    source = ModelSource("hf", str(tmp_path / "gone"), loaded.source.options)
    skeleton(source).load_state_dict(loaded.model.state_dict())
    assert any("head is new" in note for note in loaded.notes)


def test_hf_backbone_with_and_without_a_head(hf: Path) -> None:
    bare = load(f"hf:{hf / 'dinov2'}")
    assert bare.num_classes == 0 and type(bare.model).__name__ == "Dinov2Model"
    assert any("ImageNet" in note for note in bare.notes)
    headed = load(f"hf:{hf / 'dinov2'}?size=16", num_classes=10)
    assert type(headed.model).__name__ == "Dinov2ForImageClassification"
    assert headed.preprocessing.size == (16, 16)
    assert any("head is new" in note and "classifier.weight" in note for note in headed.notes)
    with torch.no_grad():
        assert logits(headed.model(example(headed.preprocessing))).shape == (2, 10)
    same(headed)


def test_hf_classifier_whose_backbone_has_another_name(hf: Path) -> None:
    assert load(f"hf:{hf / 'clip'}", num_classes=5).num_classes == 5


def test_hf_misfits(hf: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in (hf / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    gone = next(k for k in state if "layernorm_before.weight" in k)
    save_file(
        {k: v for k, v in state.items() if k != gone} | {"neck.weight": torch.zeros(2)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"1 missing: .*layernorm_before.weight.*; 1 extra: neck.weight"):
        load(f"hf:{tmp_path}")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load(f"hf:{tmp_path}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"only pytorch_model.bin, which are pickles.*save_pretrained"):
        load(f"hf:{tmp_path}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="has no config.json"):
        load(f"hf:{tmp_path}")


def test_hf_options(hf: Path) -> None:
    with pytest.raises(ModelError, match="attn must be one of eager, sdpa"):
        load(f"hf:{hf / 'vit'}?attn=flash")
    with pytest.raises(ModelError, match="has no option hiden_size"):
        load(f"hf:{hf / 'vit'}?hiden_size=3")
    assert load(f"hf:{hf / 'vit'}?num_hidden_layers=1", weights=False).model.config.num_hidden_layers == 1  # type: ignore[union-attr]
