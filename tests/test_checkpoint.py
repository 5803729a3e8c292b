"""Checkpoints of weights: loaded whole, misfits listed, pickles refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model_parts import TINY, Bomb
from vitprune.errors import ModelError
from vitprune.models import load


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
