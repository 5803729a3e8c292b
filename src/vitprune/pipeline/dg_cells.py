"""The cells of a study: a dense model for every model, held-out domains and seed, and all that is pruned of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitprune.data.domains import Held, join
from vitprune.pipeline.cells import finetuning, key_of
from vitprune.pipeline.dg_settings import StudyError, StudySettings
from vitprune.pipeline.learned import METHODS
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.recover import TrainSettings
from vitprune.report.domains import CONTROL, DENSE


@dataclass(frozen=True, slots=True)
class DgCell:
    """One trained or pruned model of a study."""

    model: str  # MODEL
    label: str  # what it is called
    held: Held
    seed: int
    training: TrainSettings | None = field(repr=False)
    decided: Mapping[str, Any] = field(repr=False)  # everything that decides the outcome, as JSON values
    form: str = DENSE
    score: str = ""
    over: str = ""
    ratio: float = 0.0
    lr: float = 0.0
    settings: PruneSettings | None = field(default=None, repr=False)
    origin: DgCell | None = field(default=None, repr=False)  # whose model is pruned

    @property
    def key(self) -> str:
        """Name of its folder, by everything that decides the outcome."""
        return key_of(self.decided)

    @property
    def name(self) -> str:
        """Such as "vit_tiny grouped-global hessian 0.5 without sketch seed 1"."""
        score, over = ("" if word in (self.form, "pooled") else word for word in (self.score, self.over))
        what = [self.form, score, over]
        what += [f"{self.ratio:g}" if self.ratio else "", f"lr {self.lr:g}" if self.lr else ""]
        return " ".join(w for w in (self.label, *what, f"without {join(self.held)} seed {self.seed}") if w)

    def about(self) -> dict[str, Any]:
        """Who it is, as JSON values."""
        fields = {"model": self.label, "held": list(self.held), "seed": self.seed, "form": self.form}
        return fields | {"score": self.score, "over": self.over, "ratio": self.ratio, "lr": self.lr}

    def to_json(self) -> dict[str, Any]:
        """Who it is, and everything that decides its outcome, as JSON values."""
        return {**self.about(), "settings": dict(self.decided)}


def cells_of(
    models: Sequence[str], held: Sequence[Held], settings: StudySettings, common: Mapping[str, Any]
) -> tuple[tuple[DgCell, ...], tuple[DgCell, ...]]:
    """The dense cells and the pruned ones, seed by seed, then domain by domain, so that means are there early.

    common: what else decides the outcomes, as JSON values.

    Raises StudyError and others for what makes no sense.
    """
    if not models:
        raise StudyError("a study needs models, at least one, but got none")
    for model in models:
        if models.count(model) > 1:
            raise StudyError(f"models of a study must differ, but {model} stands there {models.count(model)} times")
    named = dict(zip(models, labels(models), strict=True))
    dense = tuple(
        _dense(model, named[model], out, seed, settings, common)
        for seed in settings.seeds
        for out in held
        for model in models
    )
    return dense, tuple(cell for origin in dense for cell in _pruned(origin, settings))


def labels(models: Sequence[str]) -> list[str]:
    """A short name for each MODEL: "deit_tiny_patch16_224" of "timm:deit_tiny_patch16_224?img_size=28"."""
    stems = [m.partition("?")[0].rstrip("/").replace(":", "/").rpartition("/")[2] for m in models]
    return [s if stems.count(s) == 1 else f"{s} ({stems[: i + 1].count(s)})" for i, s in enumerate(stems)]


def _dense(model: str, label: str, held: Held, seed: int, settings: StudySettings, common: Mapping[str, Any]) -> DgCell:
    training = replace(settings.dense, seed=seed)
    decided = {**common, "model": model, "held": held, "seed": seed, "from_scratch": settings.from_scratch}
    return DgCell(model, label, held, seed, training, _plain({**decided, "train": training.to_json()}))


def _pruned(origin: DgCell, settings: StudySettings) -> list[DgCell]:
    found: list[DgCell] = []
    if settings.control and settings.tuning is not None:
        found += [_control(origin, settings.tuning, lr) for lr in settings.rates or (0.0,)]
    for ratio in settings.ratios:
        for form in settings.forms:
            for score, over in settings.runs(form):
                for lr in settings.rates or (0.0,):
                    found.append(_cell(origin, settings, form, score, over, ratio, lr))
    return found


def _control(origin: DgCell, tuning: TrainSettings, lr: float) -> DgCell:
    training = replace(tuning, seed=origin.seed, lr=lr or tuning.lr)
    decided = _plain({"dense": origin.key, "train": training.to_json()})
    return replace(origin, training=training, decided=decided, form=CONTROL, lr=lr, origin=origin)


def _cell(origin: DgCell, settings: StudySettings, form: str, score: str, over: str, ratio: float, lr: float) -> DgCell:
    pruning = settings.pruning(form, score, over, ratio)
    training = settings.tuning
    if training is not None:
        training = replace(training, seed=origin.seed, lr=lr or training.lr)
    if pruning.method in METHODS:
        search = replace(pruning.learned.search, seed=origin.seed)
        pruning = replace(pruning, learned=replace(pruning.learned, search=search))
        training = finetuning(pruning, training)
    about = pruning.to_json()
    if pruning.method not in METHODS:
        del about["learned"]
    decided = {
        "dense": origin.key,
        "prune": about,
        "train": None if training is None else training.to_json(),
        "distill": settings.distill,
    }
    return DgCell(
        origin.model,
        origin.label,
        origin.held,
        origin.seed,
        training,
        _plain(decided),
        form,
        score,
        over,
        ratio,
        lr,
        pruning,
        origin,
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
