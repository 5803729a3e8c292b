"""Accuracies in the domains that were trained on and in those that were held out: what a study measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from vitprune.report.paired import Interval, Spread, by_seed, spread

DENSE, CONTROL = "dense", "dense, trained on"
By = Mapping[str, float]  # domain -> top-1 in 0..1


@dataclass(frozen=True, slots=True)
class DomainScores:
    """Top-1 of one model, by domain."""

    inside: By  # source domains, on the 20 % that were not trained on: what a model may be chosen by
    outside: By  # held-out domains, on their 80 %
    oracle: By = field(default_factory=dict)  # held-out domains, on their 20 %, which only an oracle may choose by
    images: Mapping[str, int] = field(default_factory=dict)  # domain -> images that `inside` or `outside` is of

    @property
    def within(self) -> float:
        """Mean over the source domains."""
        return fmean(self.inside.values())

    @property
    def without(self) -> float:
        """Mean over the domains that were held out together."""
        return fmean(self.outside.values())

    @property
    def told(self) -> float | None:
        """Mean over the oracle's images; None without any."""
        return fmean(self.oracle.values()) if self.oracle else None


@dataclass(frozen=True, slots=True)
class DomainCell:
    """One model of a study."""

    model: str
    held: str  # "sketch", or "0+90"
    seed: int
    form: str  # "dense", or how it was pruned
    score: str
    over: str
    ratio: float  # asked: share that is removed
    key: str  # name of its folder
    lr: float = 0.0  # of the rates that were to choose from; 0: there was no choice
    found: DomainScores | None = None
    params: int = 0
    macs: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)  # of the dense model's macs and params
    speed: Mapping[int, float] = field(default_factory=dict)  # batch -> dense time / its time, measured in turns
    epoch_s: float | None = None  # median time of an epoch of training
    train_s: float | None = None  # of all of them, validation and the search of masks included
    error: str = ""

    @property
    def status(self) -> str:
        """ "done", "failed" or "open"."""
        return "done" if self.found is not None else "failed" if self.error else "open"

    @property
    def name(self) -> str:
        """Such as "vit grouped-global hessian 0.5 without sketch seed 1"."""
        parts = (
            self.model,
            self.line,
            f"{self.ratio:g}" if self.ratio else "",
            f"without {self.held} seed {self.seed}",
        )
        return " ".join(p for p in parts if p)

    @property
    def line(self) -> str:
        """Form and score, as tables and pictures call them."""
        over = "" if self.over in ("", "pooled") else f" ({self.over})"
        score = "" if self.score == self.form else f" {self.score}"
        return f"{self.form}{score}".strip() + over


@dataclass(frozen=True, slots=True)
class DomainLine:
    """A form and score of one model at one ratio, over held-out domains and seeds; accuracies in 0..1."""

    model: str
    line: str
    ratio: float
    seeds: tuple[int, ...]
    by_domain: Mapping[str, Spread]  # held-out domain -> top-1 there, over seeds
    mean: Spread | None  # over seeds, of the mean over held-out domains; None unless a seed has them all
    worst: Spread | None  # over seeds, of the lowest of them
    inside: Spread | None  # over seeds, of the mean over source domains, over all that were held out
    drop_outside: Interval | None  # dense less this, paired by seed
    drop_inside: Interval | None
    drop_by_domain: Mapping[str, Interval]  # held-out domain -> dense less this there; empty for the dense model
    shares: Mapping[str, float]  # mean
    speed: Mapping[int, float]  # median
    epoch_s: float | None  # median
    dense_epoch_s: float | None  # of the dense models of the same cells
    train_s: float | None  # median of all epochs of a cell
    dense_train_s: float | None


@dataclass(frozen=True, slots=True)
class Selection:
    """What choosing among all forms, scores and rates of a model at a ratio gives on held-out domains."""

    model: str
    ratio: float
    by_validation: Spread  # over seeds: chosen by the source domains' validation images
    by_oracle: Spread | None  # chosen by the held-out domains' 20 %
    chosen: tuple[str, ...]  # what validation chose, most often first


@dataclass(frozen=True, slots=True)
class DomainStudy:
    """All cells of a study."""

    title: str
    held: tuple[str, ...]
    cells: tuple[DomainCell, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """What the ratios are shares of, in words."""
        name = str(self.about.get("ratio_of", "params"))
        return {"params": "parameters", "macs": "MACs"}.get(name, name)

    @property
    def finished(self) -> tuple[DomainCell, ...]:
        """Those that were measured."""
        return tuple(c for c in self.cells if c.found is not None)

    @property
    def failed(self) -> tuple[DomainCell, ...]:
        """Those with an error."""
        return tuple(c for c in self.cells if c.status == "failed")

    @property
    def models(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        return tuple(dict.fromkeys(c.model for c in self.cells))

    @property
    def ratios(self) -> tuple[float, ...]:
        """That were asked for."""
        return tuple(dict.fromkeys(c.ratio for c in self.cells if c.ratio))

    def dense(self, cell: DomainCell) -> DomainCell | None:
        """The measured dense model that a cell was pruned from."""
        where = (cell.model, cell.held, cell.seed)
        return next((c for c in self.finished if c.form == DENSE and (c.model, c.held, c.seed) == where), None)

    def lines(self) -> tuple[DomainLine, ...]:
        """One for every model, ratio, form and score with a finished cell, the dense model first."""
        found: dict[tuple[str, float, str], list[DomainCell]] = {}
        for cell in self._chosen_rates():
            found.setdefault((cell.model, cell.ratio, cell.line), []).append(cell)
        place = {model: i for i, model in enumerate(self.models)}
        order = sorted(found, key=lambda k: (place[k[0]], k[1]))
        return tuple(self._line(key, found[key]) for key in order)

    def _chosen_rates(self) -> list[DomainCell]:
        """The finished cells; of several learning rates the one that is best on the source domains' validation."""
        best: dict[tuple[Any, ...], DomainCell] = {}
        for cell in self.finished:
            key = (cell.model, cell.held, cell.seed, cell.line, cell.ratio)
            if key not in best or _within(cell) > _within(best[key]):
                best[key] = cell
        return list(best.values())

    def _line(self, key: tuple[str, float, str], cells: Sequence[DomainCell]) -> DomainLine:
        model, ratio, line = key
        dense = [d for d in map(self.dense, cells) if d is not None]
        names = [name for held in self.held for name in held.split("+")]
        by_domain = {n: [c.found.outside[n] for c in cells if c.found and n in c.found.outside] for n in names}
        mean, worst = _over(cells, self.held, fmean), _over(cells, self.held, min)
        base = _over(dense, self.held, fmean)
        inside, base_inside = _inside(cells, self.held), _inside(dense, self.held)
        times = [_middle(getattr(c, name) for c in of) for name in ("epoch_s", "train_s") for of in (cells, dense)]
        batches = sorted({b for c in cells for b in c.speed})
        costs = sorted({s for c in cells for s in c.shares})
        return DomainLine(
            model,
            line,
            ratio,
            tuple(sorted({c.seed for c in cells})),
            {n: spread(values) for n, values in by_domain.items() if values},
            spread(list(mean.values())) if mean else None,
            spread(list(worst.values())) if worst else None,
            spread(list(inside.values())) if inside else None,
            by_seed(base, mean) if line != DENSE else None,
            by_seed(base_inside, inside) if line != DENSE else None,
            _drops(dense, cells, names) if line != DENSE else {},
            {s: fmean(c.shares[s] for c in cells if s in c.shares) for s in costs},
            {b: median(c.speed[b] for c in cells if b in c.speed) for b in batches},
            *times,
        )

    def selections(self) -> tuple[Selection, ...]:
        """For every model and ratio with several candidates; the choice is made anew for every seed and held-out set.

        Source: the two ways of model selection of DomainBed (arXiv 2007.01434): training-domain validation, and the
        test-domain validation set (oracle), whose figure is no result that could be had in earnest.
        """
        found: list[Selection] = []
        for model in self.models:
            for ratio in self.ratios:
                places: dict[tuple[str, int], list[DomainCell]] = {}
                for c in self.finished:
                    if (c.model, c.ratio) == (model, ratio):
                        places.setdefault((c.held, c.seed), []).append(c)
                if places and max(len(v) for v in places.values()) > 1:
                    found.append(self._selection(model, ratio, places))
        return tuple(found)

    def _selection(self, model: str, ratio: float, places: Mapping[tuple[str, int], list[DomainCell]]) -> Selection:
        validated = [max(cells, key=_within) for cells in places.values()]
        known = [c for c in (max(cells, key=_told) for cells in places.values()) if c.found and c.found.oracle]
        valid, oracle = _over(validated, self.held, fmean), _over(known, self.held, fmean)
        names = [c.line for c in validated]
        chosen = tuple(sorted(dict.fromkeys(names), key=lambda n: -names.count(n)))
        values = list(valid.values()) or [c.found.without for c in validated if c.found]
        return Selection(model, ratio, spread(values), spread(list(oracle.values())) if oracle else None, chosen)


def _within(cell: DomainCell) -> float:
    return cell.found.within if cell.found is not None else -1.0


def _told(cell: DomainCell) -> float:
    told = None if cell.found is None else cell.found.told
    return -1.0 if told is None else told


def _drops(dense: Sequence[DomainCell], cells: Sequence[DomainCell], names: Sequence[str]) -> dict[str, Interval]:
    """Held-out domain -> how much more the dense models have there, paired by seed."""
    found = {n: by_seed(_in_domain(dense, n), _in_domain(cells, n)) for n in names}
    return {n: drop for n, drop in found.items() if drop is not None}


def _in_domain(cells: Iterable[DomainCell], name: str) -> dict[int, float]:
    """Seed -> top-1 in a held-out domain."""
    return {c.seed: c.found.outside[name] for c in cells if c.found is not None and name in c.found.outside}


def _middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are known; None where none is."""
    known = [v for v in values if v is not None]
    return median(known) if known else None


def _over(cells: Iterable[DomainCell], held: Sequence[str], how: Callable[[list[float]], float]) -> dict[int, float]:
    """Seed -> `how` of the top-1 of all held-out domains, for the seeds that have them all."""
    found: dict[int, dict[str, DomainScores]] = {}
    for cell in cells:
        if cell.found is not None:
            found.setdefault(cell.seed, {})[cell.held] = cell.found
    whole = {seed: by for seed, by in found.items() if set(by) == set(held)}
    return {seed: how([v for one in by.values() for v in one.outside.values()]) for seed, by in whole.items()}


def _inside(cells: Iterable[DomainCell], held: Sequence[str]) -> dict[int, float]:
    """Seed -> mean over the source domains, over all that were held out, for the seeds that have them all."""
    found: dict[int, dict[str, float]] = {}
    for cell in cells:
        if cell.found is not None:
            found.setdefault(cell.seed, {})[cell.held] = cell.found.within
    return {seed: fmean(by.values()) for seed, by in found.items() if set(by) == set(held)}
