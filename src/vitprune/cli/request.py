"""From the options of `vitprune prune` to the settings of a run; `sweep` and `compare` have most of them too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_type_hints

from vitprune.cli import options as o

Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Request:
    """What a command line asks for; the types are those of `vitprune.pipeline.prune_run`."""

    data: Any  # DataSettings
    settings: Any  # PruneSettings
    training: Any  # TrainSettings; None without fine-tuning
    title: str  # what an output folder is named after
    how: dict[str, Any]  # further arguments of `run_prune` and `run_sweep`


def request(**options: Any) -> Request:
    """The settings that the options of `prune` stand for. Raises a VitpruneError for values that make no sense."""
    from vitprune.allocate.ratios import read_layer_ratios
    from vitprune.allocate.target import Target
    from vitprune.pipeline.learned import Learned
    from vitprune.pipeline.prune_settings import PruneSettings
    from vitprune.pipeline.setup import DataSettings
    from vitprune.progress import make_progress

    g = SimpleNamespace(**options)
    minimum = {"heads": g.min_heads, "qk": g.min_qk, "v": g.min_v, "mlp": g.min_mlp, "residual": g.min_residual}
    ratios = o.ratios(g.ratio or ())
    by_layer = tuple(read_layer_ratios(g.ratios_file).items()) if g.ratios_file is not None else ()
    itself = ratios or by_layer or g.mask_weight is not None or g.rate is not None
    asked = g.target if g.target is not None else None if itself else "macs=0.5"
    shared = {name: options[name] for name in o.TRAINING} | {"warmup_epochs": g.warmup}
    more = g.set_ or ()
    learned = Learned(
        search=o.train_settings(g.mask_epochs, more, **shared | {"lr": g.search_lr, "patience": g.mask_patience}),
        warmup=o.train_settings(g.mask_warmup, more, **shared | {"patience": 0}),
        mask_lr=g.mask_lr,
        weight=g.mask_weight,
        cost=g.mask_cost,
        rate=g.rate,
        l1=g.l1,
        start=g.mask_start,
        closings=g.closings,
        sharing=o.checked_sharing(g.sharing),
        freeze=o.names(g.freeze or ""),
        relaxation=g.relaxation,
    )
    settings = PruneSettings(
        None if asked is None else Target.parse(asked),
        method=g.method,
        scope=o.checked_scope(g.scope),
        kinds=None if g.kinds is None else o.names(g.kinds),
        round_to=g.round_to,
        minimum={kind: value for kind, value in minimum.items() if value is not None},
        protect=tuple(g.protect or ()),
        ratios=ratios,
        reduction=g.reduction,
        normalisation=g.normalise,
        rotate=g.rotate and g.calibration > 0,
        refit=g.refit and g.calibration > 0,
        calibration=g.calibration,
        blend=g.blend,
        latency_batch=g.latency_batch,
        threads=g.threads,
        layer_ratios=by_layer,
        steps=g.steps,
        learned=learned,
    )
    return Request(
        DataSettings(g.data, g.limit, g.val_fraction, g.workers, g.repeat_channels),
        settings,
        o.train_settings(g.epochs, more, **shared),
        (asked or ("ratios" if ratios or by_layer else g.method)).replace("=", "-"),
        {
            "seed": g.seed,
            "device": g.device,
            "distill": g.distill,
            "new_head": g.new_head,
            "allow_module": g.allow_module,
            "progress": make_progress(g.quiet),
        },
    )


def defaults_of(command: Command, names: Collection[str]) -> dict[str, Any]:
    """What the options of these names are when they are not given."""
    return {p.name: p.default for p in parameters(command) if p.name in names}


def with_options_of(command: Command, *, without: Collection[str]) -> Callable[[Command], Command]:
    """Decorates a command that takes `**rest`: in its place the parser sees the options of `command`.

    without: of those, the ones that are not offered; options that the decorated command has itself stay its own.
    """

    def decorate(function: Command) -> Command:
        own = [p for p in parameters(function) if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in own} | set(without)
        together = [*own, *(p for p in parameters(command) if p.name not in taken)]
        vars(function)["__signature__"] = inspect.Signature(together)
        function.__annotations__ = {p.name: p.annotation for p in together}
        return function

    return decorate


def parameters(function: Command) -> list[inspect.Parameter]:
    """The parameters of a command, with types instead of their texts."""
    types = get_type_hints(function, include_extras=True)
    return [p.replace(annotation=types[p.name]) for p in inspect.signature(function).parameters.values()]
