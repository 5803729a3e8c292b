"""What a comparison consists of: every method at every target with every seed, under one budget of training."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitprune.allocate import SCOPES, Target
from vitprune.allocate.widths import check_minimum
from vitprune.errors import TargetError, VitpruneError
from vitprune.pipeline.choose import chosen_method, chosen_scope
from vitprune.pipeline.learned import METHODS, Learned
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.recover import TrainSettings
from vitprune.score.reduce import check_choices
from vitprune.trace.graph import KINDS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class ComparisonError(VitpruneError):
    """A comparison that makes no sense as it was asked for."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison."""

    method: str  # its name there
    target: Target
    seed: int
    settings: PruneSettings = field(repr=False)  # nothing in it is left to choose
    training: TrainSettings | None = field(repr=False)  # of the fine-tuning
    decided: Mapping[str, Any] = field(repr=False)  # everything that decides the outcome, as JSON values

    @property
    def key(self) -> str:
        """Name of its folder, by everything that decides the outcome."""
        return key_of(self.decided)

    @property
    def name(self) -> str:
        """Such as "masks macs=0.5 seed 1"."""
        return f"{self.method} {self.target} seed {self.seed}"

    def about(self) -> dict[str, Any]:
        """Who it is, as JSON values."""
        return {"method": self.method, "asked": str(self.target), "seed": self.seed}

    def to_json(self) -> dict[str, Any]:
        """Who it is, and everything that decides its outcome, as JSON values."""
        return {**self.about(), "settings": dict(self.decided)}


def key_of(decided: Mapping[str, Any]) -> str:
    """12 hexadecimal digits, by these JSON values."""
    text = json.dumps(decided, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cells_of(
    methods: Mapping[str, PruneSettings],
    targets: Iterable[Target | str],
    seeds: Iterable[int],
    training: TrainSettings | None,
    common: Mapping[str, Any],
    *,
    taught: bool,
) -> tuple[Cell, ...]:
    """All cells, seed by seed, so that differences between methods are there early.

    methods: without targets and seeds, which every cell has of its own. training: the whole of every method's, see
    `finetuning`. common: what else decides the outcomes, as JSON values. taught: whether there is a teacher.

    Raises ComparisonError and others, naming the method, for what makes no sense or stands there twice.
    """
    wanted = tuple(Target.parse(t) if isinstance(t, str) else t for t in targets)
    chosen = tuple(seeds)
    for title, given in (("methods", tuple(methods)), ("targets", wanted), ("seeds", chosen)):
        _check_list(title, given)
    if training is not None:
        training.check_teacher(taught)
    cells: list[Cell] = []
    for seed in chosen:
        for target in wanted:
            for name, base in methods.items():
                try:
                    cells.append(_cell(name, base, target, seed, training, common))
                except VitpruneError as error:
                    raise type(error)(f"method {name} at {target}: {error}") from error
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.key, cell)
        if other is not cell:
            raise ComparisonError(
                f"methods {other.method} and {cell.method} have the same settings; change one or leave it out"
            )
    return tuple(cells)


def finetuning(settings: PruneSettings, training: TrainSettings | None) -> TrainSettings | None:
    """What is left of the whole training for fine-tuning: methods that train masks have spent a part of its epochs.

    Raises ComparisonError when nothing is left.
    """
    if settings.method not in METHODS:
        return training
    total = 0 if training is None else training.epochs
    warmup = 0 if settings.learned.warmup is None else settings.learned.warmup.epochs
    left = total - settings.learned.search.epochs - warmup
    if training is None or left < 1:
        raise ComparisonError(
            f"the epochs of training are equal for all methods, {total} in all, but {settings.learned.search.epochs} "
            f"under masks and {warmup} of warm-up leave {left} for fine-tuning, which needs at least 1; give fewer "
            "mask-epochs, or more epochs to all"
        )
    return replace(training, epochs=left)


def _check_list(title: str, given: Sequence[Any]) -> None:
    if not given:
        raise ComparisonError(f"a comparison needs {title}, at least one, but got none")
    for one in given:
        if given.count(one) > 1:
            raise ComparisonError(
                f"{title} of a comparison must differ, but {one} stands there {given.count(one)} times"
            )
        if title == "methods" and not NAME.fullmatch(str(one)):
            raise ComparisonError(f"a method's name must be letters, digits and any of _ . + -, but got {one!r}")
        if title == "seeds" and (not isinstance(one, int) or isinstance(one, bool) or one < 0):
            raise ComparisonError(f"seeds must be whole numbers, not negative, but got {one!r}")


def _cell(
    name: str,
    base: PruneSettings,
    target: Target,
    seed: int,
    training: TrainSettings | None,
    common: Mapping[str, Any],
) -> Cell:
    if base.target is not None or base.learned.weight is not None or base.learned.rate is not None:
        raise TargetError("targets are the comparison's, so a method has no target, weight of the cost or rate itself")
    settings, left = _resolved(replace(base, target=target), seed), finetuning(base, training)
    left = None if left is None else replace(left, seed=seed)
    pruning = settings.to_json()
    if settings.method not in METHODS:
        del pruning["learned"]
    decided = {
        **common,
        "prune": pruning,
        "train": None if left is None else left.to_json(),
        "seed": seed,
    }
    return Cell(name, target, seed, settings, left, json.loads(json.dumps(decided)))


def _resolved(settings: PruneSettings, seed: int) -> PruneSettings:
    """The settings with everything chosen, words checked and the seed in place."""
    check_minimum(settings.minimum)
    check_choices(settings.reduction, settings.normalisation)
    for title, given, known in (
        ("kinds", settings.kinds or (), KINDS),
        ("the scope", (settings.scope,), ("auto", *SCOPES)),
        ("kinds with ratios", tuple(settings.ratios), KINDS),
        ("frozen kinds", settings.learned.freeze, KINDS),
    ):
        unknown = [word for word in given if word not in known]
        if unknown:
            raise TargetError(f"{title} must be of {', '.join(known)}, but got {', '.join(unknown)}")
    if settings.method in METHODS:
        how = settings.learned
        warmup = None if how.warmup is None else replace(how.warmup, seed=seed)
        seeded = replace(how, search=replace(how.search, seed=seed), warmup=warmup)
        return replace(settings, learned=seeded).without_scores()
    method = chosen_method(settings.method, settings.calibration > 0)
    scope = chosen_scope(settings.scope, method)
    return replace(settings, method=method, scope=scope, learned=Learned())
