"""Folders to share: what they say, that they load again, and what is fetched of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from torch import nn

import vitprune
from conftest import TINY
from vitprune.errors import StoreError
from vitprune.models import LoadedModel, parse
from vitprune.pipeline.export_hub import facts, public
from vitprune.pipeline.export_settings import Card, ExportSettings
from vitprune.pipeline.opening import Opened
from vitprune.preprocessing import Preprocessing
from vitprune.store import FILES
from vitprune.store.hub import repo_of

NONE = ExportSettings(latency_batches=())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, image_folder) -> Path:
    """A pruned tiny ViT whose folder tells of places on this machine."""
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6")
    small = vitprune.shrink(origin, graph, plan)
    metrics = {"rows": [{"name": "pruned", "params": 7, "macs": 9, "top1": 0.75}]}
    metrics["data"] = {"spec": f"datasets:{image_folder}", "limit": None}
    classes = ("blue", "green", "red")
    return vitprune.save(tmp_path_factory.mktemp("s") / "small", small, plan, origin, classes=classes, metrics=metrics)


@pytest.fixture(scope="module")
def shared(saved, image_folder, tmp_path_factory) -> Path:
    """The folder that is uploaded."""
    out = tmp_path_factory.mktemp("shared") / "out"
    card = Card("some-one/small-vit", "apache-2.0", "timm/vit_tiny")
    found = vitprune.export(saved, out, "hf", data=str(image_folder), settings=NONE, card=card)
    assert found.parity.largest == 0 and found.notes == ()
    return out


def test_a_shared_folder_loads_again(saved, shared):
    assert sorted(p.name for p in shared.iterdir()) == sorted(FILES)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(vitprune.load(shared)(x), vitprune.load(saved)(x))


def test_the_card_is_one_that_the_hub_reads(shared, image_folder):
    card = ModelCard.load(shared / "README.md")
    card.data.to_dict()
    assert card.data.license == "apache-2.0" and card.data.base_model == "timm/vit_tiny"
    assert card.data.library_name == "vitprune" and card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.75, "test")
    assert 'vitprune.load("hub:some-one/small-vit")' in card.text
    assert "macs" in card.text and "## How it was pruned" in card.text


def test_a_shared_folder_names_no_place_of_this_machine(shared, image_folder):
    for name in ("plan.json", "metrics.json", "README.md", "preprocessor.json"):
        assert str(image_folder.parent) not in (shared / name).read_text(), name
    assert json.loads((shared / "metrics.json").read_text())["data"]["spec"] == f"datasets:{image_folder.name}"
    assert public({"a": ["/x/y", 3, "macs=0.5"], "b": "~/z"}) == {"a": ["y", 3, "macs=0.5"], "b": "z"}


def test_an_unknown_licence_is_said(tmp_path):
    found = vitprune.export(TINY, tmp_path / "o", "hf", settings=NONE)
    assert len(found.notes) == 1 and "--license" in found.notes[0]
    assert "license" not in ModelCard.load(tmp_path / "o" / "README.md").data.to_dict()
    assert "saved with vitprune" in (tmp_path / "o" / "README.md").read_text()


def test_licence_and_base_model_come_from_where_the_model_does(tmp_path):
    def known(spec, config=None, card=None):
        model = nn.Linear(1, 1)
        model.pretrained_cfg = config
        loaded = LoadedModel(model, parse(spec), Preprocessing((4, 4), (0.5,), (0.5,), channels=1), 1)
        return facts(Opened(loaded), card or Card())[0]

    timm = {"license": "apache-2.0", "hf_hub_id": "timm/", "architecture": "vit_tiny_patch16_224", "tag": "augreg"}
    named = "timm/vit_tiny_patch16_224.augreg"
    assert known("shipped:fmnist-vit") == {"license": "apache-2.0", "base_model": None}
    assert known("timm:vit_tiny?pretrained=true", timm) == {"license": "apache-2.0", "base_model": named}
    assert known("timm:vit_tiny", timm) == {"license": None, "base_model": None}
    (tmp_path / "README.md").write_text("---\ntags: [vit]\nlicense: mit\n---\nlicense: gpl\n")
    assert known(f"hf:{tmp_path}") == {"license": "mit", "base_model": None}
    assert known("hf:some/vit") == {"license": None, "base_model": "some/vit"}
    assert known("shipped:x", card=Card(None, "mit", "a/b")) == {"license": "mit", "base_model": "a/b"}


@pytest.fixture
def hub(shared, tmp_path, monkeypatch) -> list[dict[str, object]]:
    """A stand-in for the hub: a repository with more in it than vitprune wrote; gives the calls."""
    repo = tmp_path / "remote"
    shutil.copytree(shared, repo)
    for name in ("pytorch_model.bin", "modeling.py", "config.json", "more/model.safetensors"):
        (repo / name).parent.mkdir(exist_ok=True)
        (repo / name).write_text("not to be fetched")
    calls: list[dict[str, object]] = []

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append({"repo": repo_id, "revision": revision})
        if repo_id != "some-one/small-vit":
            raise OSError(f"404 Client Error\nRepository Not Found: {repo_id}")
        target = tmp_path / "cache" / str(revision)
        names = [str(p.relative_to(repo)) for p in repo.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, target / name)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return calls


def test_load_from_the_hub(hub, saved, tmp_path):
    x = torch.randn(2, 3, 16, 16)
    for name, revision in (("some-one/small-vit", None), ("hub:some-one/small-vit@v1", "v1")):
        assert torch.equal(vitprune.load(name)(x), vitprune.load(saved)(x))
        assert hub.pop() == {"repo": "some-one/small-vit", "revision": revision}
        folder = tmp_path / "cache" / str(revision)
        assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == set(FILES)
    opened = vitprune.load_model("hub:some-one/small-vit")
    assert torch.equal(opened.model(x), vitprune.load(saved)(x))


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(StoreError, match=r"no/such is no folder here.*hub: 404 Client Error.*hub:OWNER/NAME"):
        vitprune.load("no/such")


def test_edited_files_of_the_hub_are_refused(hub, tmp_path):
    path = tmp_path / "remote" / "plan.json"
    path.write_text(path.read_text().replace('"version"', ' "version"', 1))
    with pytest.raises(StoreError, match="plan.json was edited"):
        vitprune.load("hub:some-one/small-vit")


def test_which_names_are_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert repo_of("some-one/model") == ("some-one/model", None)
    assert repo_of("hub:runs/model@main") == ("runs/model", "main")
    for folder in ("small", "runs/model", "./some-one/model", "/a/b", "a/b/c", "runs"):
        assert repo_of(folder) is None, folder
    for wrong in ("hub:small", "hub:a/b/c", "hub:a/b@", "hub:/a/b"):
        with pytest.raises(StoreError, match="hub:OWNER/NAME or hub:OWNER/NAME@REVISION"):
            repo_of(wrong)


def test_a_local_cache_is_enough(shared, tmp_path, monkeypatch):
    """The real client, offline, with a cache as it lays one out."""
    from huggingface_hub import constants

    root = tmp_path / "hub" / "models--some-one--small-vit"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    shutil.copytree(shared, root / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(vitprune.load("hub:some-one/small-vit")(x), vitprune.load(shared)(x))
