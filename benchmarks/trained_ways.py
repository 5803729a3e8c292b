"""Every way of the study of trained models: masks, VTP, one-shot, random, from scratch, each trained and measured."""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from cells import Cells, wanted
from subject import Subject
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from trained_page import CONTROL, RATES, TARGETS
from trained_starts import Starts

import vitprune
from vitprune import Target
from vitprune.data import AugmentSettings, Data, open_data
from vitprune.evaluate import latency
from vitprune.masks import MaskResult, MaskSettings, Pressure, Start, train_masks, vtp
from vitprune.masks.settings import DENSE as MASKS
from vitprune.masks.settings import STARTED
from vitprune.models import example
from vitprune.pipeline.begin import in_basis
from vitprune.pipeline.refitted import MASKS as MASKS_CHOSE
from vitprune.pipeline.refitted import better_model
from vitprune.plan import Plan, identity
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings, fit
from vitprune.refit import refit

SHARING = ("residual", "blocks", "independent")
SCORED = " from scores"  # of ways: masks begin with what scores chose and a refit mended
BEGUN = "by value, and kept where it is better"  # of those: how far masks are from the threshold, and what may go on
TURNED = " rotated"  # with the whole model in the basis whose last dims do least
KINDS = ("mlp", "qk", "v", "residual")  # of one-shot pruning: as masks have them, but for whole heads
SETTINGS = TrainSettings(
    batch_size=64, warmup_epochs=0.25, crop_padding=1, distill_weight=1.0, label_smoothing=0.0, mixup=0.8, cutmix=1.0
)  # fmt: skip
STEP = 16  # images of a step of the search: masks that close within an epoch need steps more than images in each
SCRATCH = {"optimizer": "muon", "lr": 2e-2}  # as the shipped ViT was trained
FIXED: dict[str, Any] = {"masks": MASKS, "scratch": SCRATCH["lr"], "step": STEP}
NAMED = ("distill_weight", "label_smoothing", "mixup", "cutmix")  # of the settings, in a cell's recipe
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates, as chosen for the shipped ViT."""

    refitted: float = 2e-4  # of what scores chose and a refit mended, and of VTP
    search: float = 3e-4  # under masks from the dense model
    masked: float = 5e-4  # after them, and after random pruning with a refit
    after: float = 1e-3  # after random pruning without

    @staticmethod
    def given(text: str) -> Rates:
        """Those of the shipped ViT, but for what "name=rate,..." names."""
        pairs = (part.partition("=") for part in text.split(",") if part)
        return replace(Rates(), **{name: float(rate) for name, _, rate in pairs})

    def started(self, asked: str) -> float:
        """The rate for what scores chose and a refit mended: larger at the smaller target."""
        return 2.5 * self.refitted if asked == TARGETS[1] else self.refitted


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A trained model, and what is known of it beside its accuracy."""

    model: nn.Module
    about: Row


class Bench:
    """Trains what is not stored yet."""

    def __init__(self, subject: Subject, cells: Cells, given: argparse.Namespace) -> None:
        self.subject, self.cells, self.given = subject, cells, given
        self.rates = Rates.given(given.rates)
        self.base = replace(SETTINGS, mixup=0.0, cutmix=0.0) if given.no_mix else SETTINGS
        self.base = replace(self.base, feature_weight=given.features)
        self.recipe = asdict(self.rates) | FIXED | {name: getattr(self.base, name) for name in NAMED}
        self.recipe |= {"feature_weight": given.features} if given.features else {}
        self.progress = make_progress()
        self.starts = Starts(subject, self.progress)
        self._opened: dict[tuple[int, int], Data] = {}
        dense = {**subject.settings, "way": "dense"}
        if dense not in cells and not given.page_only:
            cells.put(dense, {"top1": subject.top1(subject.origin.model)})
        self.dense = float((cells.get(dense) or {"top1": math.nan})["top1"])

    def run(self, way: str, asked: str, seed: int) -> None:
        """One cell; asked: a target, or rate=R."""
        given = self.given
        settings = {**self.subject.settings, "train_images": given.train_images, "epochs": given.epochs}
        settings |= {"recipe": self.recipe, "way": way, "target": asked, "seed": seed, "amp": given.amp}
        settings |= {} if given.val_images is None else {"val_images": given.val_images}
        settings |= {"mask_lr": STARTED, "start": BEGUN} if way.endswith(SCORED) else {}
        if settings in self.cells or not wanted(given.only, settings):
            return
        torch.manual_seed(seed)
        began = time.monotonic()
        found = self._ways[way](asked, seed)
        values = {**found.about, "seconds": time.monotonic() - began, "top1": self.subject.top1(found.model)}
        values["params_share"] = sum(p.numel() for p in found.model.parameters()) / self.subject.graph.cost()[1]
        self.cells.put(settings, values)
        self.progress.line(f"{way} {asked} {seed}: {100 * values['top1']:.2f} % at {values['macs']:.3f} of the MACs")

    @cached_property
    def _ways(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {f"masks {s}": partial(self._masks, sharing=s) for s in SHARING}
        found |= {f"masks {s}{SCORED}": partial(self._masks, sharing=s, begun=True) for s in SHARING}
        found |= {f"masks {s}{TURNED}": partial(self._masks, sharing=s, turned=True) for s in SHARING}
        found |= {"vtp": self._vtp, f"vtp{TURNED}": partial(self._vtp, turned=True)}
        found["vtp in 3 steps"] = partial(self._vtp, closings=3)
        found[CONTROL] = self._control
        found |= {"random": partial(self._random, refits=False), "random and refit": partial(self._random, refits=True)}
        found |= {"one-shot and refit": self._one_shot, "small from scratch": self._scratch}
        return found

    def _settings(self, seed: int, epochs: int, lr: float, **more: Any) -> TrainSettings:
        given: dict[str, Any] = {"amp": self.given.amp, "batch_size": self.given.batch} | more
        return replace(self.base, seed=seed, epochs=epochs, lr=lr, **given)

    def _data(self, how: TrainSettings) -> Data:
        key = (how.seed, how.batch_size)
        if key not in self._opened:
            common: dict[str, Any] = {"seed": how.seed, "batch_size": how.batch_size}
            place, preprocessing = self.subject.data, self.subject.origin.preprocessing
            augment = AugmentSettings.from_json(how.to_json())
            train = open_data(place, preprocessing, augment=augment, limit=self.given.train_images, **common)
            some = open_data(place, preprocessing, limit=self.given.val_images, **common)
            self._opened[key] = replace(train, val=some.val)
        return self._opened[key]

    def _fit(self, model: nn.Module, seed: int, lr: float, **more: Any) -> nn.Module:
        how = self._settings(seed, sum(self.given.epochs), lr, **more)
        data = self._data(how)
        fit(model, data.train, data.val, how, teacher=self.subject.origin.model)
        return model

    def _learned(
        self, model: nn.Module, seed: int, settings: MaskSettings, tune: TrainSettings, start: Start | None = None
    ) -> Outcome:
        """What masks chose may go on with the dense weights, refitted, as `vitprune prune` does it."""
        subject, data, image = self.subject, self._data(tune), (example(self.subject.origin.preprocessing),)
        teacher, basis = subject.origin.model, copy.deepcopy(model)
        result: MaskResult = train_masks(
            model, subject.graph, self._data(settings.search).train, data.val, settings, example=image, teacher=teacher,
            start=start,
        )  # fmt: skip
        kept = better_model(
            result.model, basis, subject.graph, result.plan, subject.calibration(seed), data.val,
            start=None if start is None or start.model is None else (start.plan, start.model),
            example=image, progress=self.progress,
        )  # fmt: skip
        small, settled = kept.model, kept.plan.settings
        about = _about(kept.plan) | {"units": settled["units"], "weights": settled["weights"], "notes": [kept.said]}
        about["behind"] = sum(result.behind.values()) if settled["units"] == MASKS_CHOSE else 0
        about["before"] = subject.top1(small)
        fit(small, data.train, data.val, tune, teacher=teacher)
        return Outcome(small, about)

    def _masks(self, asked: str, seed: int, *, sharing: str, begun: bool = False, turned: bool = False) -> Outcome:
        own = self.rates
        rates = (own.refitted, own.started(asked)) if begun else (own.search, own.masked)
        search, tune = self._both(seed, *rates)
        target, model, start = Target.parse(asked), copy.deepcopy(self.subject.origin.model), None
        settings = MaskSettings(Pressure(target=target), search, finetune=None, sharing=sharing)  # type: ignore[arg-type]
        if turned:
            model = self._turned(settings, seed)
        if begun:
            model, start = self.starts.of(target, seed, sharing)
        return self._learned(model, seed, settings, tune, start)

    def _both(self, seed: int, search: float, after: float) -> tuple[TrainSettings, TrainSettings]:
        """Settings of the search and of the training after it, at their learning rates."""
        first, then = self.given.epochs
        return self._settings(seed, first, search, batch_size=STEP), self._settings(seed, then, after)

    def _turned(self, settings: MaskSettings, seed: int) -> nn.Module:
        """The dense model in the basis whose last dims do least."""
        subject = self.subject
        return in_basis(
            copy.deepcopy(subject.origin.model), subject.graph, settings, subject.calibration(seed), self.progress
        ).model

    def _vtp(self, asked: str, seed: int, *, closings: int = 1, turned: bool = False) -> Outcome:
        search, tune = self._both(seed, self.rates.refitted, self.rates.refitted)
        rate, target = (float(asked.removeprefix("rate=")), None) if asked in RATES else (None, Target.parse(asked))
        settings = replace(vtp(search, rate=rate, target=target, closings=closings, mask_lr=MASKS), finetune=None)
        model = self._turned(settings, seed) if turned else copy.deepcopy(self.subject.origin.model)
        return self._learned(model, seed, settings, tune)

    def _one_shot(self, asked: str, seed: int) -> Outcome:
        _, start = self.starts.of(self._target(asked, seed), seed)
        before = self.subject.top1(start.model)
        model = self._fit(start.model, seed, self.rates.started(asked))
        return Outcome(model, _about(start.plan) | {"before": before})

    def _control(self, _asked: str, seed: int) -> Outcome:
        model = self._fit(copy.deepcopy(self.subject.origin.model), seed, self.rates.refitted)
        return Outcome(model, {"macs": 1.0, "params": 1.0})

    def _random(self, asked: str, seed: int, *, refits: bool) -> Outcome:
        subject, about = self.subject, dict[str, Any]()
        scores = vitprune.score(subject.graph, subject.origin, "random", seed, kinds=KINDS)
        target = self._target(asked, seed)
        plan = vitprune.allocate(subject.graph, scores, target, scope="local", kinds=KINDS, round_to=1)
        small = vitprune.shrink(subject.origin, subject.graph, plan)
        if refits:
            refit(subject.origin.model, small, subject.graph, plan, subject.calibration(seed))
            about["before"] = subject.top1(small)
        return Outcome(self._fit(small, seed, self.rates.masked if refits else self.rates.after), _about(plan) | about)

    def _target(self, asked: str, seed: int) -> Target:
        """The target itself; for a rate the MACs that VTP came to with it."""
        if asked not in RATES:
            return Target.parse(asked)
        row = next((r for r in self.cells if self._same(r, "vtp", asked, seed)), None)
        if row is None:
            raise SystemExit(f"vtp at {asked} with seed {seed} must be measured first")
        return Target("macs", float(f"{row['macs']:.4f}"))

    def _same(self, row: Row, way: str, asked: str, seed: int) -> bool:
        mine = {"way": way, "target": asked, "seed": seed, "epochs": self.given.epochs}
        mine |= {"train_images": self.given.train_images, "recipe": self.recipe}
        return self.subject.owns(row) and all(row.get(k) == v for k, v in mine.items())

    def _scratch(self, asked: str, seed: int) -> Outcome:
        """A ViT of the same depth, patches and ratio of widths, as wide as the time of the one-shot model permits."""
        dense = self.subject.origin.model
        assert isinstance(dense, VisionTransformer), "small models are made of timm's vision transformers only"
        row = next((r for r in self.cells if self._same(r, "one-shot and refit", asked, seed)), None)
        if row is None:
            raise SystemExit(f"one-shot and refit at {asked} with seed {seed} must be measured first")
        models: dict[str, nn.Module] = {
            "pruned": vitprune.shrink(self.subject.origin, self.subject.graph, self._plan(row["sizes"]))
        }
        models |= {str(width): _vit(dense, width) for width in range(8, dense.embed_dim + 1, 4)}
        image = example(self.subject.origin.preprocessing)
        rows = latency(models, image, batch_sizes=(32,), threads=self.given.threads)
        times = {row.name: row.median_ms for row in rows}
        goal = times.pop("pruned")
        width = min(times, key=lambda name: abs(math.log(times[name] / goal)))
        small = models[width]
        macs, _ = vitprune.trace(small, image).cost()
        about = {"macs": macs / self.subject.graph.cost()[0], "width": int(width), "time": times[width] / goal}
        return Outcome(self._fit(small, seed, **SCRATCH), about)

    def _plan(self, sizes: Mapping[str, int]) -> Plan:
        """A plan that keeps the first units of every group, so many as are named."""
        whole = identity(self.subject.graph)
        kept = {name: ((tuple(range(n)),) * whole.groups[name].lanes) for name, n in sizes.items()}
        return replace(whole, groups={**whole.groups, **{n: replace(whole.groups[n], kept=k) for n, k in kept.items()}})


def _vit(dense: VisionTransformer, width: int) -> VisionTransformer:
    size, patch = dense.patch_embed.img_size, dense.patch_embed.patch_size
    heads = dense.blocks[0].attn.num_heads
    while width % heads:
        heads //= 2
    return VisionTransformer(
        img_size=size, patch_size=patch, in_chans=dense.patch_embed.proj.in_channels, num_classes=dense.num_classes,
        embed_dim=width, depth=len(dense.blocks), num_heads=heads,
    )  # fmt: skip


def _about(plan: Plan) -> Row:
    about = {name: plan.obtained[name]["ratio"] for name in ("macs", "params")}
    return about | {"sizes": {name: g.kept_size for name, g in plan.groups.items() if g.kind != "block"}}
