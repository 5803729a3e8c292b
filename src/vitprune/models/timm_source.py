"""Models of timm's registry: timm:NAME[?checkpoint=PATH&img_size=98&...]."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitprune.errors import ModelError
from vitprune.models.choices import checkpoint_of, classes_of, nearest, overridden, own_options
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource
from vitprune.models.weights import compare, last_linear, load_weights_, read_tensors
from vitprune.preprocessing import Preprocessing, fit_channels


def build(source: ModelSource, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """The timm module that `source` names. Raises ModelError for unknown names and arguments."""
    import timm

    if not timm.is_model(source.name):
        raise ModelError(f"timm has no model {source.name!r}{nearest(source.name, timm.list_models())}")
    kwargs = own_options(source)
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    try:
        module: nn.Module = timm.create_model(source.name, pretrained=pretrained, **kwargs)
    except Exception as error:
        what = "download or build" if pretrained else "build"
        raise ModelError(f"timm could not {what} {source}: {error}") from error
    return module


def load(source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
    """The module with the weights that the source names: a checkpoint, timm's pre-trained ones, or random ones."""
    notes: tuple[str, ...] = ()
    wanted, path = classes_of(source, num_classes), checkpoint_of(source)
    pretrained = bool(source.options.get("pretrained"))
    if path is not None and pretrained:
        raise ModelError(f"give a checkpoint or pretrained=true, not both: {source}")
    if weights and path is not None:
        state, notes = read_tensors(path)
        if wanted is None:
            wanted = _rows(state, source.name)
        model = build(source, wanted)
        if compare(model, state):
            state = _filtered(model, state)
        heads = _heads(model)
        given = {k: v for k, v in state.items() if any(k == f"{h}.weight" for h in heads)}
        fresh = wanted is not None and all(len(v) != wanted for v in given.values())
        notes += load_weights_(model, state, where=str(path), head=heads, fresh_head=fresh)
    else:
        model = build(source, wanted, pretrained=weights and pretrained)
        if weights and not pretrained:
            notes = ("no checkpoint was given: the weights are random",)
    classes = int(getattr(model, "num_classes", 0) or 0)
    preprocessing = overridden(read_preprocessing(model, source), source.options)
    return LoadedModel(model.eval(), source.with_options(num_classes=classes), preprocessing, classes, notes)


def read_preprocessing(model: nn.Module, source: ModelSource) -> Preprocessing:
    """What timm's configuration of the model says, with the size and channels that it was really built with."""
    from timm.data import resolve_model_data_config

    config: Mapping[str, Any] = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    channels = int(source.options.get("in_chans") or channels)  # type: ignore[arg-type]
    built: Any = source.options.get("img_size") or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if built is not None:
        height, width = (built, built) if isinstance(built, int) else built
    interpolation = str(config["interpolation"])
    return Preprocessing(
        size=(int(height), int(width)),
        mean=fit_channels(config["mean"], channels),
        std=fit_channels(config["std"], channels),
        interpolation="bicubic" if interpolation == "random" else interpolation,
        channels=channels,
        crop_pct=float(config["crop_pct"]),
        crop_mode="squash" if config.get("crop_mode") == "squash" else "center",
    )


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier modules."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or last_linear(model) or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _rows(state: Mapping[str, Tensor], name: str) -> int | None:
    """The class count of a checkpoint, read off its classifier."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    named = (config.classifier if config is not None else None) or "head"
    first = named if isinstance(named, str) else named[0]
    weight = state.get(f"{first}.weight")
    return None if weight is None else len(weight)


def _filtered(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` through the model file's own converter of foreign names and position embeddings, where it has one."""
    converter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if converter is None:
        return state
    try:
        converted = converter(dict(state), model)
    except Exception:  # foreign to the converter as well: the comparison that follows names the tensors
        return state
    return {k: v for k, v in converted.items() if isinstance(v, Tensor)} if isinstance(converted, dict) else state
