"""Models of torchvision's registry: torchvision:NAME[?checkpoint=PATH] or ?weights=DEFAULT from its download site."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from vitprune.errors import ModelError
from vitprune.models.choices import checkpoint_of, classes_of, nearest, overridden, own_options
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource
from vitprune.models.weights import last_linear, load_weights_, read_tensors
from vitprune.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, fit_channels


def build(source: ModelSource, num_classes: int | None = None) -> nn.Module:
    """The torchvision module without its weights. Raises ModelError for unknown names and arguments."""
    from torchvision.models import get_model, list_models

    if source.name not in list_models():
        raise ModelError(f"torchvision has no model {source.name!r}{nearest(source.name, list_models())}")
    kwargs = own_options(source)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    try:
        module: nn.Module = get_model(source.name, weights=None, **kwargs)
    except Exception as error:
        raise ModelError(f"torchvision could not build {source}: {error}") from error
    return module


def load(source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
    """The module with the weights of a checkpoint file, of torchvision's site, or random ones."""
    path, named = checkpoint_of(source), source.options.get("weights")
    wanted = classes_of(source, num_classes)
    notes: tuple[str, ...] = ()
    if weights and (path is not None or named):
        state, notes = read_tensors(path) if path is not None else (_download(source.name, str(named)), ())
        probe = build(source, wanted)
        head = last_linear(probe)
        rows = len(state[f"{head}.weight"]) if f"{head}.weight" in state else None
        model = probe if wanted is not None or rows is None else build(source, rows)
        fresh = wanted is not None and rows != wanted
        where = str(path or f"torchvision's {named}")
        notes += load_weights_(model, state, where=where, head=(head,) if head else (), fresh_head=fresh)
    else:
        model = build(source, wanted)
        if weights:
            notes = ("no checkpoint was given: the weights are random",)
    final = last_linear(model)
    classes = int(getattr(model.get_submodule(final), "out_features", 0)) if final else 0
    return LoadedModel(
        model.eval(),
        source.with_options(num_classes=classes),
        overridden(_preprocessing(source), source.options),
        classes,
        notes,
    )


def _download(name: str, weights: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    try:
        state: dict[str, Any] = get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
    except KeyError as error:
        known = ", ".join(get_model_weights(name).__members__)
        raise ModelError(f"torchvision's {name} has no weights {weights!r}, but {known}") from error
    except Exception as error:
        raise ModelError(f"torchvision could not download {weights} of {name}: {error}") from error
    return state


def _preprocessing(source: ModelSource) -> Preprocessing:
    """The transforms that torchvision publishes with its default weights; ImageNet's where there are none."""
    from torchvision.models import get_model_weights

    asked: Any = source.options.get("image_size")
    try:
        preset = get_model_weights(source.name)["DEFAULT"].transforms()
        crop, resize = preset.crop_size[0], preset.resize_size[0]
        mean, std, interpolation = preset.mean, preset.std, str(preset.interpolation.value)
    except (KeyError, AttributeError, ValueError):
        crop, resize, mean, std, interpolation = 224, 256, list(IMAGENET_MEAN), list(IMAGENET_STD), "bilinear"
    side = int(asked or crop)
    pct = min(1.0, math.floor(crop / resize * 1000) / 1000)
    return Preprocessing((side, side), fit_channels(mean, 3), fit_channels(std, 3), interpolation, 3, pct)
