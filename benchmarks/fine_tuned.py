"""Accuracy after an equal fine-tuning budget: the best of `one_shot.py`, vitprune beside Torch-Pruning 1.6.1.

    python benchmarks/one_shot.py         # whose stored cells say which models are the best at each target
    python benchmarks/fine_tuned.py       # 1, 3 and 10 epochs on 10,000 images of Fashion-MNIST

Both sides get the same images in the same order, the same settings and the dense model as teacher, and each of their
models the learning rate of a small grid that was best for it on validation images after `--grid-epochs`. Of several
`--peers` (the best few as cut, which are all near chance at small sizes) the one that is best then goes on. The weights
kept are those of the best epoch on validation images, those before training included. Cells are stored as they are
measured, so a run that was stopped goes on.

Needs the peer: pip install torch-pruning==1.6.1
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import peer
import torch
from cells import Cells
from one_shot import RECIPES, texts
from record import parser, setting, table, write
from subject import Subject, add_options
from torch import nn

import vitprune
from vitprune.data import AugmentSettings, Data, open_data
from vitprune.evaluate.accuracy import wilson
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings, fit
from vitprune.score.registry import METHODS

TARGETS = (0.25, 0.5, 0.33)
EPOCHS = (1, 3, 10)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SETTINGS = TrainSettings(batch_size=64, warmup_epochs=0.5, crop_padding=1, distill_weight=0.5)
AIM = (0.25, 0.01)  # target at which vitprune should lead by so much
VALIDATION = 2000  # images
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to a pruned model."""

    tool: str
    score: str
    scope: str
    structure: str
    recipe: str

    @staticmethod
    def of(row: Row) -> Contender:
        """That of a stored cell."""
        return Contender(*(row[name] for name in Contender.__slots__))

    @property
    def settings(self) -> Row:
        """As stored in cells."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def name(self) -> str:
        """As shown in tables."""
        return " ".join(v for n, v in self.settings.items() if n != "structure" or v in peer.STRUCTURES)


def contenders(rows: Sequence[Row], target: float, given: argparse.Namespace) -> list[Contender]:
    """Per target vitprune's named lines, by default what its defaults give, and Torch-Pruning's best few."""
    here = [r for r in rows if r.get("target") == target and "top1" in r and r["seed"] == given.seed]
    here.sort(key=lambda r: -r["top1"])
    ours = [r for r in here if r["tool"] == "vitprune" and r["recipe"] == given.recipe]
    named = [r for r in ours if f"{r['score']}:{r['scope']}" in given.lines]
    theirs = [r for r in here if r["tool"] == "torch-pruning"][: given.peers]
    if not named or not theirs:
        raise SystemExit(f"no cells of both tools at target {target}; run benchmarks/one_shot.py first")
    return list(dict.fromkeys(Contender.of(r) for r in (*named, *theirs)))


def build(subject: Subject, one: Contender, target: float, given: argparse.Namespace) -> nn.Module:
    """The pruned model before training."""
    batches = subject.calibration(given.seed)
    if one.tool == "torch-pruning":
        model = peer.prepared(subject.origin.model)
        found = peer.gradients(model, one.score, batches)
        return peer.prune(model, batches[0][0], found, one.score, one.scope, one.structure, target).model
    kinds, graph, (rotates, refits) = one.structure.split(","), subject.graph, RECIPES[one.recipe]
    source = vitprune.rotate(subject.origin, graph, batches, kinds) if rotates else subject.origin
    scores = vitprune.score(graph, source, one.score, given.seed, batches, kinds=kinds)
    plan = vitprune.allocate(graph, scores, f"macs={target}", scope=one.scope, kinds=kinds, round_to=given.round_to)
    small = vitprune.shrink(source, graph, plan)
    if refits:
        vitprune.refit(source, small, graph, plan, batches)
    return small


class Bench:
    """Trains what is not stored yet."""

    def __init__(self, subject: Subject, cells: Cells, given: argparse.Namespace) -> None:
        self.subject, self.cells, self.given = subject, cells, given
        self.progress = make_progress()
        self._data: Data | None = None
        self._built: tuple[tuple[Contender, float], nn.Module] | None = None

    def run(self, some: Sequence[Contender], target: float) -> None:
        """All budgets of vitprune's contenders and the best of the peer's, each at its learning rate."""
        tried = {one: self._rate(one, target) for one in some}
        theirs = [one for one in some if one.tool == "torch-pruning"]
        finalists = [one for one in some if one not in theirs]
        for one in [*finalists, max(theirs, key=lambda one: tried[one][0])]:
            for epochs in self.given.epochs:
                self.train(one, target, epochs, tried[one][1])

    def _rate(self, one: Contender, target: float) -> tuple[float, float]:
        """(top-1 on validation images, the learning rate that gave it)."""
        grid = [self.train(one, target, self.given.grid_epochs, lr) for lr in self.given.rates]
        best = max(grid, key=lambda row: row["val_top1"])
        return best["val_top1"], best["lr"]

    def train(self, one: Contender, target: float, epochs: int, lr: float) -> Row:
        """One cell, its learning rate included."""
        settings = {**self.subject.settings, "train_images": self.given.train_images, "seed": self.given.seed}
        settings |= {**one.settings, "round_to": self.given.round_to, "target": target, "epochs": epochs, "lr": lr}
        if (known := self.cells.get(settings)) is None:
            known = self._train(one, target, replace(SETTINGS, epochs=epochs, lr=lr, seed=self.given.seed))
            self.cells.put(settings, known)
            self.progress.line(f"{one.name} {target} {epochs} epochs at {lr:g}: {100 * known['top1']:.2f} %")
        return {**known, "lr": lr}

    def _train(self, one: Contender, target: float, settings: TrainSettings) -> Row:
        model, data = copy.deepcopy(self._model(one, target)), self._images(settings)
        began = time.monotonic()
        history = fit(model, data.train, data.val, settings, teacher=self.subject.origin.model)
        seconds = time.monotonic() - began
        row = {"top1": self.subject.top1(model), "val_top1": max(history.best_val_top1, history.start_val_top1 or 0.0)}
        return row | {"start_val_top1": history.start_val_top1, "best_epoch": history.best_epoch, "seconds": seconds}

    def _model(self, one: Contender, target: float) -> nn.Module:
        if self._built is None or self._built[0] != (one, target):
            self._built = (one, target), build(self.subject, one, target, self.given)
        return self._built[1]

    def _images(self, settings: TrainSettings) -> Data:
        if self._data is None:
            common = {"seed": settings.seed, "batch_size": settings.batch_size}
            place, preprocessing = self.subject.data, self.subject.origin.preprocessing
            augment = AugmentSettings.from_json(settings.to_json())
            train = open_data(place, preprocessing, augment=augment, limit=self.given.train_images, **common)
            some = open_data(place, preprocessing, limit=VALIDATION, **common)
            self._data = replace(train, val=some.val)
        return self._data


def at_chosen_rates(rows: Sequence[Row], grid_epochs: int, rates: Sequence[float]) -> list[Row]:
    """The cells of every contender at its learning rate, as `Bench.run` chooses it; other grids leave others behind."""

    def who(row: Row) -> tuple[float, Contender]:
        return row["target"], Contender.of(row)

    tried = [row for row in rows if row["epochs"] == grid_epochs and row["lr"] in rates]
    best: dict[tuple[float, Contender], Row] = {}
    for row in sorted(tried, key=lambda row: rates.index(row["lr"])):
        if who(row) not in best or row["val_top1"] > best[who(row)]["val_top1"]:
            best[who(row)] = row
    return [row for row in rows if who(row) in best and row["lr"] == best[who(row)]["lr"]]


def page(rows: Sequence[Row], before: Sequence[Row], dense: float, given: argparse.Namespace) -> list[str]:
    """The verdict and the table of every contender."""
    cells: dict[tuple[float, str, str], dict[int, Row]] = {}
    for row in at_chosen_rates(rows, given.grid_epochs, given.rates):
        key = (row["target"], row["tool"], Contender.of(row).name)
        cells.setdefault(key, {})[row["epochs"]] = row
    start = {
        (r["target"], Contender.of(r).name): r["top1"]
        for r in before if "top1" in r and r["tool"] != "dense" and r["seed"] == given.seed
    }  # fmt: skip
    listing, gaps = [], []
    for target in sorted({key[0] for key in cells}, reverse=True):
        keys = sorted((key for key in cells if key[0] == target), key=lambda key: key[1] != "vitprune")
        here = {key: cells[key] for key in keys}
        for (_, _, name), at in here.items():
            shown = [f"{100 * at[e]['top1']:.2f} ({at[e]['lr']:g})" if e in at else "" for e in given.epochs]
            listing.append([f"{target:.0%}", name, f"{100 * start[target, name]:.2f}", *shown])
        for what, labels in (("no labels", False), ("any", True)):
            found = [_gap(here, e, labels) for e in given.epochs]
            gaps.append(
                [f"{target:.0%}", what, *("" if g is None else f"{100 * g:+.2f}" for g in found), _holds(found, target)]
            )
    budgets = [f"{e} epoch{'s' * (e > 1)}" for e in given.epochs]
    aim, lead = AIM
    return [
        f"Dense: {100 * dense:.2f} %. vitprune's (by scores without labels, and by any) against Torch-Pruning's "
        f"best, in points; the aim is ahead everywhere, and by {100 * lead:g} or more at {aim:.0%} of the MACs:",
        table(["MACs", "vitprune's scores", *budgets, "holds"], gaps),
        "Top-1 in percent, the learning rate in brackets:",
        table(["MACs", "model", "before", *budgets], listing),
    ]


def _gap(here: dict[tuple[float, str, str], dict[int, Row]], epochs: int, labels: bool) -> float | None:
    rows = [at[epochs] for at in here.values() if epochs in at]
    ours = [
        r["top1"] for r in rows
        if r["tool"] == "vitprune" and (labels or "labels" not in METHODS[r["score"]].info.needs)
    ]  # fmt: skip
    theirs = [r["top1"] for r in rows if r["tool"] == "torch-pruning"]
    return max(ours) - max(theirs) if ours and theirs else None


def _holds(gaps: Sequence[float | None], target: float) -> str:
    known = [gap for gap in gaps if gap is not None]
    least = AIM[1] if target == AIM[0] else 0.0
    enough = all(gap >= least - 1e-9 if least else gap > 0 for gap in known)
    if not enough:
        return "no"
    return "yes" if len(known) == len(gaps) else "not all measured"


def main() -> None:
    """Trains what is missing and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--targets", type=lambda v: [float(t) for t in v.split(",")], default=list(TARGETS))
    options.add_argument("--epochs", type=lambda v: [int(e) for e in v.split(",")], default=list(EPOCHS))
    options.add_argument("--rates", type=lambda v: [float(r) for r in v.split(",")], default=list(RATES))
    options.add_argument("--grid-epochs", type=int, default=1, help="after which the learning rate is chosen")
    options.add_argument("--train-images", type=int, default=10_000)
    options.add_argument("--recipe", default="rotate+refit", choices=list(RECIPES), help="of vitprune's models")
    options.add_argument("--lines", type=texts, default=["output-error:per-cost"], help="vitprune's SCORE:SCOPE,...")
    options.add_argument("--peers", type=int, default=1, help="how many of Torch-Pruning's best, as cut, to try")
    options.add_argument("--round-to", type=int, default=8)
    options.add_argument("--fresh", action="store_true", help="train stored cells again")
    options.add_argument("--page-only", action="store_true", help="train nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject = Subject.of(given)
    before = [r for r in Cells(given.out / f"one-shot-{subject.label}.jsonl") if subject.owns(r)]
    cells = Cells(given.out / f"fine-tuned-{subject.label}.jsonl", fresh=given.fresh)
    bench = Bench(subject, cells, given)
    if not given.page_only:
        for target in given.targets:
            bench.run(contenders(before, target, given), target)
    rows = [r for r in cells if subject.owns(r) and r["train_images"] == given.train_images]
    dense = next(r["top1"] for r in before if r["tool"] == "dense")
    about = setting(given.threads, given.seed) | subject.describe(dense)
    about["calibration"] = f"{subject.images} training images of {subject.data}, for scores and refit"
    fixed = {k: v for k, v in SETTINGS.to_json().items() if k not in ("epochs", "lr", "seed")}
    about["training"] = f"{given.train_images:,} images, the dense model as teacher, {fixed}"
    about["learning rate"] = f"of {given.rates}, by {VALIDATION:,} validation images after {given.grid_epochs} epoch(s)"
    images = sum(len(labels) for _, labels in subject.test)
    low, high = wilson(round(dense * images), images)
    about["interval"] = f"±{50 * (high - low):.1f} points (95 %) for the top-1 of the dense model"
    about["command"] = about["command"].replace(" --page-only", "")
    title = f"{subject.label}: pruned and fine-tuned"
    write(given.out, f"fine-tuned-{subject.label}", title, page(rows, before, dense, given), cells.path.name, about)


if __name__ == "__main__":
    main()
