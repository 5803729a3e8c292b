"""Accuracy without training: every score and scope, cut and refitted, beside Torch-Pruning 1.6.1.

    python benchmarks/one_shot.py                                # the shipped ViT, all Fashion-MNIST test images
    python benchmarks/one_shot.py --only tool=vitprune --only score=energy,fisher
    python benchmarks/one_shot.py --page-only                    # the page and the figure from the stored cells

Every cell starts from the same checkpoint and sees the same calibration images (labels where a score asks for them).
Cells are stored as they are measured: a run that was stopped goes on, a new score or recipe adds its own cells alone.

Needs the peer: pip install torch-pruning==1.6.1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import one_shot_page
import peer
import torch
from cells import Cells, wanted
from record import parser, setting
from subject import Batches, Subject, add_options
from torch import nn

import vitprune
from vitprune.allocate.allocate import DEFAULT_KINDS, SCOPES
from vitprune.calibrate import Sensitivity, sensitivities
from vitprune.errors import VitpruneError
from vitprune.progress import make_progress
from vitprune.refit import refit
from vitprune.refit.refit import FELT
from vitprune.score.registry import METHODS, Scores

TARGETS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25)
SEEDED_SCOPES = ("local", "per-cost")  # of which more than the first seed is measured


# What is done to the model before the cut and after it. A new entry adds its own cells to those that are stored.
RECIPES = {"cut": (False, False), "refit": (False, True), "rotate+refit": (True, True)}  # rotate, refit
assert all(recipe in one_shot_page.RECIPES for recipe in RECIPES)


class Bench:
    """Measures the cells that are missing."""

    def __init__(self, subject: Subject, cells: Cells, given: argparse.Namespace) -> None:
        self.subject, self.cells, self.given = subject, cells, given
        self.progress = make_progress()
        self._kept: dict[tuple[Any, ...], Any] = {}

    def dense(self) -> float:
        """Top-1 of the dense model in 0..1."""
        settings = {**self.subject.settings, "tool": "dense"}
        if settings not in self.cells:
            self.cells.put(settings, {"top1": self.subject.top1(self.subject.origin.model)})
        return float((self.cells.get(settings) or {})["top1"])

    def ours(self, score: str, scope: str, seed: int) -> None:
        """All targets and recipes of one score and scope."""
        for target in self.given.targets:
            common = {**self.subject.settings, "tool": "vitprune", "score": score, "scope": scope}
            common |= {"structure": ",".join(self.given.kinds), "round_to": self.given.round_to}
            common |= {"target": target, "seed": seed}
            for recipe, (rotates, refits) in RECIPES.items():
                settings = {**common, "recipe": recipe}
                partly = recipe == "refit" and (scope != "local" or seed != self.given.seeds[0])
                if partly or not self._wants(settings):
                    continue
                source, batches = self._source(rotates, seed), self._batches(seed)
                about: dict[str, Any] = {"labels": "labels" in METHODS[score].info.needs}
                try:
                    plan = vitprune.allocate(
                        self.subject.graph, self._scores(score, seed, rotates), f"macs={target}", scope=scope,
                        kinds=self.given.kinds, round_to=self.given.round_to,
                    )  # fmt: skip
                    small = vitprune.shrink(source, self.subject.graph, plan)
                except VitpruneError as error:
                    self._put(settings, about | {"refused": str(error)})
                    continue
                began = time.monotonic()
                if refits:
                    felt = self._felt(rotates, seed)
                    refit(source.model, small, self.subject.graph, plan, batches, felt=felt)
                about |= {name: plan.obtained[name]["ratio"] for name in ("macs", "params")}
                about["seconds"] = time.monotonic() - began
                self._put(settings, about | {"top1": self.subject.top1(small)})

    def theirs(self, importance: str, scope: str, structure: str, seed: int) -> None:
        """All targets of one importance, scope and structure of Torch-Pruning."""
        for target in self.given.targets:
            settings = {**self.subject.settings, "tool": "torch-pruning", "score": importance, "scope": scope}
            settings |= {"structure": structure, "target": target, "seed": seed, "recipe": "cut"}
            if not self._wants(settings):
                continue
            model, found, x = self._peer, self._gradients(importance, seed), self._batches(seed)[0][0]
            about = {"labels": "labels" in peer.IMPORTANCES[importance]}
            began = time.monotonic()
            try:
                cut = peer.prune(model, x, found, importance, scope, structure, target)
            except ValueError as error:
                self._put(settings, about | {"refused": str(error)})
                continue
            about |= {"macs": cut.macs, "ratio": cut.ratio, "seconds": time.monotonic() - began}
            dense = sum(p.numel() for p in model.parameters())
            self._put(settings, about | {"params": cut.parameters / dense, "top1": self.subject.top1(cut.model)})

    def _wants(self, settings: Mapping[str, Any]) -> bool:
        return settings not in self.cells and wanted(self.given.only, settings)

    def _put(self, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.cells.put(settings, values)
        names = (str(settings[n]) for n in ("tool", "score", "scope", "structure", "target", "seed", "recipe"))
        got = values.get("refused") or f"{100 * values['top1']:.2f} % at {values['macs']:.3f} of the MACs"
        self.progress.line(f"{' '.join(names)}: {got}")

    @cached_property
    def _peer(self) -> nn.Module:
        return peer.prepared(self.subject.origin.model)

    def _batches(self, seed: int) -> Batches:
        return self._once(("batches", seed), lambda: self.subject.calibration(seed))

    def _gradients(self, importance: str, seed: int) -> peer.Gradients:
        batches = self._batches(seed)
        return self._once(("peer", importance, seed), lambda: peer.gradients(self._peer, importance, batches))

    def _source(self, rotates: bool, seed: int) -> Any:
        subject, kinds = self.subject, self.given.kinds
        if not rotates:
            return subject.origin
        return self._once(
            ("rotated", seed), lambda: vitprune.rotate(subject.origin, subject.graph, self._batches(seed), kinds)
        )

    def _felt(self, rotates: bool, seed: int) -> Mapping[str, Sensitivity]:
        source, batches = self._source(rotates, seed), self._batches(seed)
        return self._once(("felt", rotates, seed), lambda: sensitivities(source.model, batches, images=FELT, draws=1))

    def _scores(self, score: str, seed: int, rotates: bool) -> Scores:
        graph, source, batches = self.subject.graph, self._source(rotates, seed), self._batches(seed)
        kinds = self.given.kinds
        return self._once(
            (score, seed, rotates), lambda: vitprune.score(graph, source, score, seed, batches, kinds=kinds)
        )

    def _once(self, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]


def jobs(given: argparse.Namespace) -> Iterable[tuple[str, str, int]]:
    """(tool, scope, seed) in the order of measuring: what matters most first."""
    first, *others = given.seeds
    local = [s for s in given.scopes if s in SEEDED_SCOPES]
    rest = [s for s in given.scopes if s not in SEEDED_SCOPES]
    yield from (("vitprune", scope, first) for scope in local)
    yield from (("torch-pruning", scope, first) for scope in given.scopes)
    yield from (("vitprune", scope, first) for scope in rest)
    yield from ((tool, scope, seed) for seed in others for tool in ("vitprune", "torch-pruning") for scope in local)


def measure(bench: Bench, given: argparse.Namespace) -> None:
    """Everything that is missing."""
    for tool, scope, seed in jobs(given):
        if tool == "vitprune":
            for score in given.scores:
                if scope != "per-cost" or METHODS[score].info.comparable:
                    bench.ours(score, scope, seed)
        elif scope in peer.SCOPES:
            for importance in peer.IMPORTANCES:
                if seed == given.seeds[0] or peer.IMPORTANCES[importance]:  # the others look at no image
                    for structure in peer.STRUCTURES:
                        bench.theirs(importance, scope, structure, seed)


def texts(value: str) -> list[str]:
    """The parts of a list given as one argument."""
    return [part for part in value.split(",") if part]


def main() -> None:
    """Measures what is missing and writes the dated page and figure."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--targets", type=lambda v: [float(t) for t in v.split(",")], default=list(TARGETS))
    options.add_argument("--scores", type=texts, default=list(METHODS))
    options.add_argument("--scopes", type=texts, default=["local", *(s for s in SCOPES if s != "local")])
    options.add_argument("--kinds", type=texts, default=list(DEFAULT_KINDS))
    options.add_argument("--round-to", type=int, default=8)
    options.add_argument(
        "--seeds", type=lambda v: [int(s) for s in v.split(",")], default=[0, 1, 2],
        help=f"of the calibration draw; those after the first for scope {', '.join(SEEDED_SCOPES)}",
    )  # fmt: skip
    options.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="cells to measure")
    options.add_argument("--fresh", action="store_true", help="measure stored cells again")
    options.add_argument("--page-only", action="store_true", help="measure nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject = Subject.of(given)
    cells = Cells(given.out / f"one-shot-{subject.label}.jsonl", fresh=given.fresh)
    bench = Bench(subject, cells, given)
    dense = bench.dense()
    if not given.page_only:
        measure(bench, given)
    mine = [row for row in cells if subject.owns(row) and row["tool"] != "dense"]
    about = setting(given.threads, given.seeds[0]) | subject.describe(dense)
    scopes = " and ".join(SEEDED_SCOPES)
    about["seed"] = f"calibration drawn by {', '.join(map(str, given.seeds))}; after the first only in scope {scopes}"
    about["command"] = about["command"].replace(" --page-only", "")
    about["choice"] = (
        "vitprune's default score, scope and refit were developed with a look at test images of the shipped ViT and of "
        "DINOv2 on Fashion-MNIST; the peer's best line is chosen by the test images"
    )
    about["cells"] = "measured in one or several runs of this command and its filters; load and versions: of the last"
    entered = sum("entered" in row for row in cells if subject.owns(row))
    if entered:
        about["cells"] += f"; {entered} cells come from the same calls in a script of its own, and were entered by hand"
    one_shot_page.write_page(given.out, subject.label, mine, dense, about, cells.path.name)


if __name__ == "__main__":
    main()
