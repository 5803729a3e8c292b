"""Models by name: specs, loading, skeletons, checkpoints that do not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitprune.errors import ModelError
from vitprune.models import LoadedModel, ModelSource, Preprocessing, example, load, logits, parse, skeleton

TINY = "timm:vit_tiny_patch16_224?img_size=32&patch_size=8&embed_dim=32&depth=2&num_heads=2&num_classes=7"


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


def same(loaded: LoadedModel) -> None:
    """The skeleton of a loaded model takes its weights and computes the same."""
    source = ModelSource.from_json(json.loads(json.dumps(loaded.source.to_json())))
    bare = skeleton(source)
    assert type(bare) is type(loaded.model)
    buffers = dict(bare.named_buffers())
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    bare.load_state_dict(loaded.model.state_dict())
    x = example(loaded.preprocessing)
    with torch.no_grad():
        assert torch.equal(logits(bare(x)), logits(loaded.model(x)))


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


def checkpoint(path: Path, change: str = "", prefix: str = "") -> dict[str, Tensor]:
    """Writes the weights of TINY, changed in one way."""
    state = {k: v.clone() for k, v in load(TINY, seed=5).model.state_dict().items()}
    if change == "missing":
        del state["blocks.1.mlp.fc1.weight"]
    if change == "extra":
        state["neck.weight"] = torch.zeros(3)
    if change == "shape":
        state["blocks.0.norm1.bias"] = torch.zeros(31)
    if change == "headless":
        del state["head.weight"], state["head.bias"]
    save_file({f"{prefix}{k}": v for k, v in state.items()}, path)
    return state


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoint_is_loaded_whole(tmp_path: Path, prefix: str) -> None:
    state = checkpoint(tmp_path / "w.safetensors", prefix=prefix)
    loaded = load(f"{TINY}&checkpoint={tmp_path / 'w.safetensors'}")
    assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in state.items())
    assert not any("head" in note for note in loaded.notes)


def test_class_count_is_read_off_the_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.safetensors")
    loaded = load(f"{TINY.replace('&num_classes=7', '')}&checkpoint={tmp_path / 'w.safetensors'}")
    assert loaded.num_classes == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: blocks.1.mlp.fc1.weight \[128, 32\]"),
        ("extra", r"1 extra: neck.weight \[3\]"),
        ("shape", r"1 of another shape: blocks.0.norm1.bias \[31\] for \[32\]"),
    ],
)
def test_misfits_are_listed(tmp_path: Path, change: str, message: str) -> None:
    checkpoint(tmp_path / "w.safetensors", change)
    with pytest.raises(ModelError, match=message):
        load(f"{TINY}&checkpoint={tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize("change", ["", "headless"])
def test_another_class_count_gives_a_new_head_and_says_so(tmp_path: Path, change: str) -> None:
    state = checkpoint(tmp_path / "w.safetensors", change)
    loaded = load(f"{TINY}&checkpoint={tmp_path / 'w.safetensors'}", num_classes=4)
    assert loaded.num_classes == 4 and loaded.source.options["num_classes"] == 4
    assert any("head is new" in note and "head.weight" in note for note in loaded.notes)
    assert torch.equal(loaded.model.state_dict()["norm.weight"], state["norm.weight"])


class Bomb:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "whole.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Bomb()))
    for name, message in (
        ("whole.pth", "convert"),
        ("plain.bin", "pickles among them"),
        ("named.safetensors", "safetensors"),
    ):
        with pytest.raises(ModelError, match=message):
            load(f"{TINY}&checkpoint={tmp_path / name}")
    assert "ran" not in capsys.readouterr().out


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"w.safetensors is no whole"):
        load(f"{TINY}&checkpoint={tmp_path / 'w.safetensors'}")
    with pytest.raises(ModelError, match="no checkpoint at"):
        load(f"{TINY}&checkpoint={tmp_path / 'gone.pth'}")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=r"w.npz is no safetensors file"):
        load(f"{TINY}&checkpoint={tmp_path / 'w.npz'}")


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
