"""Models by name or folder, ready for the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune import models, store
from vitprune.errors import ModelError, StoreError
from vitprune.models import LoadedModel, ModelSource
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing
from vitprune.shrink import shrink
from vitprune.trace import trace
from vitprune.trace.graph import Graph


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model, and the plan that it was pruned by before, if it comes from a saved folder."""

    loaded: LoadedModel
    plan: Plan | None = None
    classes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The module, in eval mode."""
        return self.loaded.model


def open_model(
    spec: str,
    *,
    num_classes: int | None = None,
    weights: bool = True,
    device: str = "cpu",
    seed: int = 0,
    allow_module: str | None = None,
) -> Opened:
    """The model that a MODEL argument names: a source of `models`, or a folder that vitprune saved, here or on the hub.

    seed: of initial weights and new heads. allow_module: see `check_code`.

    Raises ModelError or StoreError when it cannot be had.
    """
    if spec.startswith(store.PREFIX):
        spec = str(store.local(spec))
    source = models.parse(spec)
    if source.kind != "folder":
        return Opened(models.load(source, num_classes=num_classes, weights=weights, device=device, seed=seed))
    contents = store.read(Path(source.name))
    check_code(contents, allow_module)
    origin = ModelSource.from_json(contents.plan.source)
    model = store.load(contents, rebuild, device=device)
    had = _class_count(model, contents.preprocessing)
    if num_classes is not None and num_classes != had:
        raise ModelError(f"{spec} has {had} classes, not {num_classes}; a saved folder keeps its head")
    loaded = LoadedModel(model, origin, contents.preprocessing, had)
    return Opened(loaded, contents.plan, contents.classes)


def check_code(contents: store.Contents, allow_module: str | None) -> None:
    """Pass unless the folder names a callable of its own (module:...) that the caller did not allow by name.

    Such a folder is loaded by importing and calling what it names, so a folder from elsewhere could name anything.

    Raises StoreError, naming the callable.
    """
    source = contents.plan.source
    if source.get("kind") == "module" and source.get("name") != allow_module:
        raise StoreError(
            f"{contents.folder} was made from module:{source.get('name')}, and loading it would import and call that; "
            f"if you trust it, allow it: load(..., allow_module={source.get('name')!r}) or --allow-module"
        )


def rebuild(plan: Plan, preprocessing: Preprocessing) -> nn.Module:
    """The shrunk skeleton of a plan: the dense module of its own library without its weights, cut to size.

    Raises PlanError when the library now builds another structure, ModelError when it cannot build it.
    """
    model, graph = dense_skeleton(plan, preprocessing)
    example = (models.example(preprocessing),)
    plan.check(graph)
    if not plan.pruned():
        return model
    return shrink(model, graph, plan, check=False, example=example)


def dense_skeleton(plan: Plan, preprocessing: Preprocessing) -> tuple[nn.Module, Graph]:
    """The dense module that a plan was made for, weights of no matter, and its graph."""
    model = models.skeleton(ModelSource.from_json(plan.source))
    return model, trace(model, (models.example(preprocessing),))


def trace_batch(example: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    """Arguments for a trace from an example: one image is doubled, as a batch of 1 says nothing of its axis."""
    args = (example,) if isinstance(example, Tensor) else tuple(example)
    return tuple(torch.cat([a, a]) if isinstance(a, Tensor) and a.dim() and a.shape[0] == 1 else a for a in args)


def _class_count(model: nn.Module, preprocessing: Preprocessing) -> int:
    with torch.no_grad():
        parameter = next(model.parameters())
        images = models.example(preprocessing).to(parameter.device, parameter.dtype)
        return int(models.logits(model(images)).shape[-1])
