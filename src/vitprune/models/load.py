"""From a MODEL argument to a module: one table of sources, loading, and rebuilding without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import nn

from vitprune.errors import ModelError
from vitprune.models import hf_source, module_source, shipped, timm_source, torchvision_source
from vitprune.models.empty_init import no_random_init, seeded_init
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource, parse


class Loader(Protocol):
    """Loads a source of one kind."""

    def __call__(self, source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
        """The module with its weights, or with its library's initial ones."""


LOADERS: dict[str, Loader] = {
    "timm": timm_source.load,
    "hf": hf_source.load,
    "torchvision": torchvision_source.load,
    "module": module_source.load,
    "shipped": shipped.load,
}


def _with_classes(build: Callable[[ModelSource, int | None], nn.Module]) -> Callable[[ModelSource], nn.Module]:
    def builder(source: ModelSource) -> nn.Module:
        classes = source.options.get("num_classes")
        return build(source, classes if isinstance(classes, int) else None)

    return builder


BUILDERS: dict[str, Callable[[ModelSource], nn.Module]] = {
    "timm": _with_classes(timm_source.build),
    "hf": hf_source.build,
    "torchvision": _with_classes(torchvision_source.build),
    "module": _with_classes(module_source.build),
    "shipped": _with_classes(shipped.build),
}


def load(
    spec: str | ModelSource,
    *,
    num_classes: int | None = None,
    weights: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """The model that `spec` names, in float32 and evaluation mode, with its preprocessing.

    `num_classes`: another class count than the checkpoint's gives the model a new head, and a note says so.
    `weights=False` leaves the library's initial weights, which depend on `seed` alone; new heads do so as well.

    Raises:
        ModelError: the name is unknown (the nearest ones are listed), the checkpoint is missing, is a pickle, or does
            not fit (the first missing, extra and mis-shaped tensors are listed).
    """
    source = _known(spec)
    with seeded_init(seed):
        loaded = LOADERS[source.kind](source, num_classes, weights=weights)
    loaded.model.to(device)
    return loaded


def skeleton(source: str | ModelSource, *, num_classes: int | None = None) -> nn.Module:
    """The same module with the right buffers and zeros for its random weights, built on the CPU without any download.

    For the source of a `LoadedModel`: its class count and, for transformers, its configuration are kept in it.
    """
    known = _known(source)
    if num_classes is not None:
        known = known.with_options(num_classes=num_classes)
    with no_random_init():
        return BUILDERS[known.kind](known).float().eval()


def _known(spec: str | ModelSource) -> ModelSource:
    source = parse(spec) if isinstance(spec, str) else spec
    if source.kind == "folder":
        raise ModelError(f"{source.name} was saved by vitprune: read it with vitprune.load({source.name!r})")
    if source.kind not in LOADERS:
        raise ModelError(f"unknown kind of model {source.kind!r}; known: {', '.join(LOADERS)}")
    return source
