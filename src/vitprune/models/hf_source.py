"""Image classifiers and backbones of transformers: hf:ID-or-FOLDER[?attn=eager]. Safetensors only, no remote code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitprune.errors import ModelError
from vitprune.models.choices import classes_of, overridden, own_options
from vitprune.models.hf_preprocessing import read_preprocessing
from vitprune.models.loaded import LoadedModel
from vitprune.models.source import ModelSource
from vitprune.models.weights import Misfit, describe

ATTENTION = ("eager", "sdpa")
CLASSIFIER = "ForImageClassification"  # in the names of transformers' classes


def load(source: ModelSource, num_classes: int | None, *, weights: bool) -> LoadedModel:
    """The classifier, or the bare backbone when the checkpoint has no head and no class count is asked for."""
    config, notes = _config(source)
    trained = int(config.num_labels)
    wanted = classes_of(source, num_classes)
    architecture = (config.architectures or [None])[0] or ""
    headless = CLASSIFIER not in architecture
    if wanted and wanted != trained:
        config.num_labels = wanted
    factory = _factory(config, classifier=not headless or bool(wanted))
    options = {"attn_implementation": _attention(source), "dtype": torch.float32, "trust_remote_code": False}
    if weights:
        may_differ = bool(wanted) and (headless or wanted != trained)
        model, more = _read(source, factory, config, options, may_differ)
        notes += more
    else:
        model = _build(source, factory, config, options)
    classes = int(config.num_labels) if CLASSIFIER in type(model).__name__ else 0
    preprocessing, said = read_preprocessing(source.name, config)
    resolved = source.with_options(
        num_classes=classes, architecture=type(model).__name__, config=json.loads(config.to_json_string(use_diff=False))
    )
    return LoadedModel(
        model.float().eval(), resolved, overridden(preprocessing, source.options), classes, (*notes, *said)
    )


def build(source: ModelSource) -> nn.Module:
    """The module of a source that `load` resolved, from the configuration kept in it; needs no folder and no network.

    A source that was not resolved is built from its folder's or the hub's configuration.
    """
    import transformers

    kept, name = source.options.get("config"), source.options.get("architecture")
    if not isinstance(kept, Mapping):
        return load(source, None, weights=False).model
    fields = dict(kept)
    try:
        config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
        kind = getattr(transformers, str(name))
    except (KeyError, ValueError, AttributeError) as error:
        raise ModelError(f"this transformers ({transformers.__version__}) cannot build {name}: {error}") from error
    module: nn.Module = kind._from_config(config, attn_implementation=_attention(source), dtype=torch.float32)
    return module.float()


def _config(source: ModelSource) -> tuple[Any, tuple[str, ...]]:
    from transformers import AutoConfig

    folder = Path(source.name).expanduser()
    if not folder.is_dir() and (source.name.startswith((".", "/", "~")) or source.name.count("/") > 1):
        raise ModelError(f"no folder {source.name}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is no transformers folder")
    own = own_options(source)
    try:
        config, unused = AutoConfig.from_pretrained(
            str(folder) if folder.is_dir() else source.name, trust_remote_code=False, return_unused_kwargs=True, **own
        )
    except Exception as error:
        raise ModelError(f"transformers has no configuration for {source.name!r}: {_short(error)}") from error
    unknown = sorted(set(unused) & set(own))
    if unknown:
        raise ModelError(f"{type(config).__name__} has no option {', '.join(unknown)} (in {source})")
    return config, ()


def _factory(config: Any, *, classifier: bool) -> Any:
    from transformers import AutoModel, AutoModelForImageClassification

    known = AutoModelForImageClassification._model_mapping
    if classifier and type(config) in known:
        named = (config.architectures or [""])[0]
        options = known[type(config)]
        for option in options if isinstance(options, tuple) else (options,):
            if option.__name__ == named:  # DeiT has two classes for one configuration
                return option
        return AutoModelForImageClassification
    if classifier:
        raise ModelError(f"transformers has no image classifier for {config.model_type!r}; leave num_classes out")
    return AutoModel


def _attention(source: ModelSource) -> str | None:
    asked = source.options.get("attn")
    if asked is not None and asked not in ATTENTION:
        raise ModelError(f"attn must be one of {', '.join(ATTENTION)}, but got {asked!r}")
    return None if asked is None else str(asked)


def _build(source: ModelSource, factory: Any, config: Any, options: Mapping[str, Any]) -> nn.Module:
    kwargs = {k: v for k, v in options.items() if v is not None and k != "trust_remote_code"}
    method = getattr(factory, "from_config", None) or factory._from_config
    try:
        module: nn.Module = method(config, **kwargs)
    except Exception as error:
        raise ModelError(f"transformers could not build {source}: {_short(error)}") from error
    return module


def _read(
    source: ModelSource, factory: Any, config: Any, options: Mapping[str, Any], new_head: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with its weights; only the head may differ, and only when `new_head`."""
    _refuse_pickle(Path(source.name).expanduser())
    kwargs = {k: v for k, v in options.items() if v is not None}
    try:
        with _quiet():
            model, info = factory.from_pretrained(
                str(Path(source.name).expanduser()) if Path(source.name).expanduser().is_dir() else source.name,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told apart below, with names and shapes
                output_loading_info=True,
                **kwargs,
            )
    except Exception as error:
        raise ModelError(f"transformers could not read {source.name!r}: {_short(error)}") from error
    missing, misshaped = _names(info.get("missing_keys", ())), _misshaped(info.get("mismatched_keys", ()))
    fresh = [k for k in (*missing, *misshaped) if new_head and _in_head(model, k)]
    own = model.state_dict()
    misfit = Misfit(
        missing=tuple(f"{k} {list(own[k].shape) if k in own else ''}" for k in missing if k not in fresh),
        extra=tuple(_names(info.get("unexpected_keys", ()))),
        misshaped=tuple(text for k, text in misshaped.items() if k not in fresh),
    )
    if misfit:
        raise ModelError(f"{source.name} does not fit {type(model).__name__}: {describe(misfit)}")
    return model, (f"the head is new, not from {source.name}: {', '.join(fresh)}",) if fresh else ()


def _in_head(model: nn.Module, key: str) -> bool:
    """Whether a tensor lies outside of the backbone, which most classifiers hold under one name."""
    top, backbone = key.partition(".")[0], str(getattr(model, "base_model_prefix", ""))
    return top != backbone if hasattr(model, backbone) else "classifier" in top


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what did not fit: the notes and errors here say it."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_pickle(folder: Path) -> None:
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt"))]
    held = f"only {', '.join(pickles)}, which are pickles" if pickles else "no weights"
    raise ModelError(
        f"{folder} holds {held}; save the model again with model.save_pretrained(folder), which writes safetensors"
    )


def _names(keys: object) -> list[str]:
    return sorted(str(k) for k in keys) if isinstance(keys, set | frozenset | list | tuple) else []


def _misshaped(keys: object) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in keys if isinstance(keys, set | frozenset | list | tuple) else ():
        name, given, wanted = entry
        found[str(name)] = f"{name} {list(given)} for {list(wanted)}"
    return found


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
