"""A user's own model: module:package.mod:factory[?width=96], any callable that returns a module."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from vitprune.errors import ModelError
from vitprune.models.choices import checkpoint_of, classes_of, nearest, overridden, own_options
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource
from vitprune.models.weights import last_linear, load_weights_, read_tensors
from vitprune.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, fit_channels

SIZES = ("img_size", "image_size", "input_size", "size")


def build(source: ModelSource, num_classes: int | None = None) -> nn.Module:
    """What the named callable returns; it gets num_classes when it takes one and one is asked for."""
    factory = _factory(source.name)
    kwargs = own_options(source)
    parameters = inspect.signature(factory).parameters
    if num_classes is not None and "num_classes" in parameters:
        kwargs["num_classes"] = num_classes
    elif "num_classes" not in parameters:
        kwargs = {k: v for k, v in kwargs.items() if k not in SIZES or k in parameters}
    try:
        module = factory(**kwargs)
    except Exception as error:
        raise ModelError(f"{source.name} could not be called with {kwargs}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{source.name} must return a torch.nn.Module, but returned {type(module).__name__}")
    return module


def load(source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
    """The module, with the weights of a checkpoint file where the source names one, else as the callable made it."""
    model = build(source, classes_of(source, num_classes))
    notes: tuple[str, ...] = ()
    path = checkpoint_of(source)
    if weights and path is not None:
        state, notes = read_tensors(path)
        head = last_linear(model)
        rows = len(state[f"{head}.weight"]) if f"{head}.weight" in state else None
        fresh = num_classes is not None and rows != num_classes
        notes += load_weights_(model, state, where=str(path), head=(head,) if head else (), fresh_head=fresh)
    classes = _classes(model)
    preprocessing, said = _preprocessing(model, source)
    resolved = source.with_options(num_classes=classes) if classes else source
    return LoadedModel(model.float().eval(), resolved, overridden(preprocessing, source.options), classes, notes + said)


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    with _working_folder_importable():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ModelError(
                f"module {module_name!r} cannot be imported ({error}); is its folder in PYTHONPATH?"
            ) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ModelError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, dir(module))}")
    if not callable(found):
        raise ModelError(f"{name} must be callable, but is {type(found).__name__}")
    result: Callable[..., Any] = found
    return result


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Finds modules beside the user, as `python -m` does and an installed command does not."""
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _classes(model: nn.Module) -> int:
    own = getattr(model, "num_classes", None)
    if isinstance(own, int):
        return own
    final = last_linear(model)
    return int(getattr(model.get_submodule(final), "out_features", 0)) if final else 0


def _preprocessing(model: nn.Module, source: ModelSource) -> tuple[Preprocessing, tuple[str, ...]]:
    """The model's own `preprocessing`, else size and channels by options, attributes and first convolution."""
    own = getattr(model, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own, ()
    if isinstance(own, dict):
        return Preprocessing.from_json(own), ()
    named = [source.options.get(n) for n in SIZES] + [getattr(model, n, None) for n in SIZES]
    size: Any = next((v for v in named if isinstance(v, int | list | tuple) and not isinstance(v, bool)), None)
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = int(convolution.in_channels) if convolution is not None else 3
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:] if size else (224, 224)
    note = f"{source.name} says nothing of its images: {channels} x {height} x {width} with ImageNet's norm is assumed"
    mean, std = fit_channels(IMAGENET_MEAN, channels), fit_channels(IMAGENET_STD, channels)
    return Preprocessing((int(height), int(width)), mean, std, "bicubic", channels), (note,)
