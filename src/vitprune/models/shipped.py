"""Models that come with vitprune: shipped:fmnist-vit, trained on Fashion-MNIST."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import as_file, files
from typing import Any

from torch import nn

from vitprune.errors import ModelError
from vitprune.models.choices import classes_of, overridden
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource
from vitprune.models.weights import load_weights_, read_tensors
from vitprune.preprocessing import Preprocessing

FOLDERS: dict[str, str] = {"fmnist-vit": "fmnist_vit"}


def build(source: ModelSource, num_classes: int | None = None) -> nn.Module:
    """The module without its weights. Raises ModelError for unknown names."""
    import timm

    config = read_config(source.name)
    kwargs = dict(config["kwargs"])
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    module: nn.Module = timm.create_model(config["timm"], pretrained=False, **kwargs)
    return module


def load(source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
    """The trained module; with another class count than it was trained for, its head is new."""
    config = read_config(source.name)
    trained, wanted = int(config["kwargs"]["num_classes"]), classes_of(source, num_classes)
    model = build(source, wanted)
    notes: tuple[str, ...] = ()
    if weights:
        with as_file(_folder(source.name) / "model.safetensors") as path:
            state, _ = read_tensors(path)
        fresh = wanted is not None and wanted != trained
        notes = load_weights_(model, state, where=f"shipped:{source.name}", head=("head",), fresh_head=fresh)
    classes = trained if wanted is None else wanted
    preprocessing = overridden(Preprocessing.from_json(config["preprocessing"]), source.options)
    return LoadedModel(model.eval(), source.with_options(num_classes=classes), preprocessing, classes, notes)


def read_config(name: str) -> Mapping[str, Any]:
    """timm name, its arguments, and the preprocessing of a shipped model."""
    if name not in FOLDERS:
        raise ModelError(f"no model {name!r} comes with vitprune, only {', '.join(FOLDERS)}")
    config: Mapping[str, Any] = json.loads((_folder(name) / "config.json").read_text(encoding="utf-8"))
    return config


def _folder(name: str) -> Any:
    return files("vitprune") / "assets" / FOLDERS[name]
