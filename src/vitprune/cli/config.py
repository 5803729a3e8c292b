"""The CONFIG of `vitprune compare`: a TOML file with options of `vitprune prune`, checked before anything runs."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from vitprune.cli import options as o
from vitprune.cli.prune import prune
from vitprune.cli.request import parameters, request
from vitprune.errors import VitpruneError

TOP = {"model": str, "data": str, "seeds": list, "targets": list, "baseline": str, "common": dict, "methods": dict}
OPTIONAL = ("baseline", "common")
# what a method may not have of its own: the training, the data, and what a latency is of
COMMON = (
    *("epochs", "warmup", "set_", "distill", "new_head", *o.TRAINING),
    *("limit", "val_fraction", "workers", "repeat_channels", "latency_batch", "threads"),
)
ELSEWHERE = {
    **dict.fromkeys(("model", "data"), "at the top of the file"),
    **dict.fromkeys(("target", "mask_weight", "rate"), "as targets, at the top of the file"),
    "seed": "as seeds, at the top of the file",
    **dict.fromkeys(("out", "force", "resume", "checkpoint_every", "tracker", "log_dir"), "on the command line"),
    **dict.fromkeys(("device", "allow_module", "json", "quiet"), "on the command line"),
}
JOINED = ("kinds", "freeze", "feature_layers")  # lists are taken too


class ConfigError(VitpruneError):
    """A configuration that cannot be read or makes no sense."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a file asks for; the types are those of `vitprune.pipeline.compare_run`."""

    text: str
    model: str
    data: Any  # DataSettings
    methods: Mapping[str, Any]  # PruneSettings by name
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    training: Any  # TrainSettings, or None
    baseline: str | None
    how: Mapping[str, Any]  # further arguments of `run_compare`


def read_config(path: Path, **command_line: Any) -> Config:
    """The comparison that the file describes; `command_line` holds the options of `prune` that do not stand in it.

    Raises ConfigError, naming the place in the file, for what cannot be read, is not known, stands in the wrong place
    or is of the wrong type; other VitpruneErrors, also with the place, for values that make no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read: {why}; give a TOML file, see docs/usage.md") from error
    _check_top(path, found)
    common = _options(path, "common", found.get("common", {}))
    runs = {}
    for name, given in found["methods"].items():
        place = f"methods.{name}"
        own = _options(path, place, given)
        if "method" not in own:
            own["method"] = _implied(path, place, name)
        runs[name] = _run(path, place, {**_usual(found), **command_line, **common, **own}, {*common, *own})
    first = next(iter(runs.values()))
    return Config(
        text,
        found["model"],
        first.data,
        {name: replace(run.settings, target=None) for name, run in runs.items()},
        tuple(found["targets"]),
        tuple(found["seeds"]),
        first.training,
        found.get("baseline"),
        {name: value for name, value in first.how.items() if name != "seed"},
    )


def _check_top(path: Path, found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if key not in TOP:
            raise ConfigError(f"{path}: the top of the file has {', '.join(TOP)}, but got {key!r}{_near(key, TOP)}")
        _check_type(path, "the top of the file", key, value, TOP[key])
    for key in TOP:
        if key not in OPTIONAL and not found.get(key):
            what = "is missing" if key not in found else "is empty"
            raise ConfigError(f"{path}: {key} {what}; give {_EXAMPLES[key]}")
    for key, kind in (("seeds", int), ("targets", str)):
        for value in found[key]:
            _check_type(path, "each of", key, value, kind)


def _options(path: Path, place: str, given: Any) -> dict[str, Any]:
    """The options of a table by the names of the parameters of `prune`."""
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: {place} must be a table of options, [{place}], but got {given!r}")
    known = {p.name: p for p in parameters(prune)}
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = {"set": "set_"}.get(key, key.replace("-", "_"))
        if name in ELSEWHERE:
            raise ConfigError(f"{path}: [{place}] has {key}, which stands {ELSEWHERE[name]}")
        if name not in known or key == "set_":
            names = [_dashed(n) for n in known if n not in ELSEWHERE]
            raise ConfigError(f"{path}: [{place}] has {key!r}, but options are {', '.join(names)}{_near(key, names)}")
        if name in found:
            raise ConfigError(f"{path}: [{place}] has {key} twice, with a dash and with an underscore; leave one out")
        if place == "common" and name == "method":
            raise ConfigError(f"{path}: [common] has method {value!r}; give each of [methods.NAME] its own")
        if place != "common" and name in COMMON:
            raise ConfigError(
                f"{path}: [{place}] has {key}, but training and data are the same for all methods; set it in [common]"
            )
        found[name] = _value(path, place, key, value, known[name])
    return found


def _value(path: Path, place: str, key: str, value: Any, parameter: inspect.Parameter) -> Any:
    """The value as the command line would give it."""
    kind, *more = (
        get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (parameter.annotation,)
    )
    kind = next((part for part in get_args(kind) if part is not type(None)), kind) if _optional(kind) else kind
    if get_origin(kind) is list:
        values = value if isinstance(value, list) else [value]
        for one in values:
            _check_type(path, f"[{place}]", key, one, str)
        return values
    if isinstance(value, list) and parameter.name in JOINED:
        for one in value:
            _check_type(path, f"[{place}]", key, one, str)
        return ",".join(value)
    _check_type(path, f"[{place}]", key, value, str if kind is Path else kind)
    low, high = (getattr(more[0], end, None) if more else None for end in ("min", "max"))
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ConfigError(f"{path}: [{place}] {key} must be {limits}, but got {value}")
    return Path(value).expanduser() if kind is Path else value


def _optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _check_type(path: Path, place: str, key: str, value: Any, kind: type) -> None:
    """Pass for a value of the type; whole numbers are numbers, too, and truth values are not."""
    takes = (int, float) if kind is float else (kind,)
    if not isinstance(value, takes) or (isinstance(value, bool) and kind is not bool) or value != value:
        raise ConfigError(f"{path}: {place} {key} must be {_TYPES[kind]}, but got {value!r}")


def _implied(path: Path, place: str, name: str) -> str:
    """The method that a table means by its name."""
    from vitprune.pipeline.learned import METHODS
    from vitprune.score.registry import METHODS as SCORES

    if name not in ("auto", *METHODS, *SCORES):
        raise ConfigError(
            f"{path}: [{place}] has no method, and {name!r} is none of auto, {', '.join((*SCORES, *METHODS))}; "
            "add method = ..."
        )
    return name


def _run(path: Path, place: str, options: Mapping[str, Any], given: Collection[str]) -> Any:
    """The Request of a method."""
    from vitprune.pipeline.learned import METHODS

    for pair in options["set_"] or ():
        if pair.partition("=")[0].strip() in ("epochs", "seed"):
            raise ConfigError(f"{path}: [common] set has {pair!r}; give epochs in [common] and seeds at the top")
    if options["method"] in METHODS and "mask_epochs" not in given:
        raise ConfigError(
            f"{path}: [{place}] trains masks, which takes a part of the {options['epochs']} epochs that all "
            "methods have; say how many: mask-epochs = ..."
        )
    try:
        return request(**options)
    except VitpruneError as error:
        raise type(error)(f"{path}: [{place}], [common]: {error}") from error


def _usual(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `prune` takes where nothing is said."""
    usual = {p.name: p.default for p in parameters(prune) if p.default is not inspect.Parameter.empty}
    return usual | {"model": found["model"], "data": found["data"]}


def _dashed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _near(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key.replace("_", "-"), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


_TYPES: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
_EXAMPLES = {
    "model": 'model = "shipped:fmnist-vit"',
    "data": 'data = "fashion-mnist"',
    "seeds": "seeds = [0, 1, 2]",
    "targets": 'targets = ["macs=0.5"]',
    "methods": "a table [methods.NAME] for each",
}
