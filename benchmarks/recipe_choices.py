"""What brings back most of a pruned model's accuracy: recipes of a short training that differ in one thing each.

    python benchmarks/recipe_choices.py                                   # the shipped Fashion-MNIST ViT
    python benchmarks/recipe_choices.py --only recipe=base --targets params=0.1 --seeds 1

Every recipe starts from the same rotated, pruned and refitted model and sees the same images as often, with the dense
model as teacher. Judged by top-1 and by the divergence of the class probabilities from the dense model's, on validation
images, so that what is chosen here can be reported on test images elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from cells import Cells, wanted
from one_shot import texts
from record import mean_sd, parser, setting, table, write
from subject import Subject, add_options
from trained import numbers
from trained_starts import Starts

from vitprune import Target
from vitprune.data import AugmentSettings, open_data
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings, fit
from vitprune.search import Judge

BASE = TrainSettings(
    batch_size=64, warmup_epochs=0.5, crop_padding=1, lr=5e-4, distill_weight=1.0, label_smoothing=0.0, amp="no"
)


FURTHER: dict[str, dict[str, Any]] = {
    "mixup": {"mixup": 0.8},
    "CutMix": {"cutmix": 1.0},
    "mixup or CutMix": {"mixup": 0.8, "cutmix": 1.0},
    "random erasing": {"erasing": 0.25},
    "resized crops": {"resized_crop": 0.5},
    "crops shifted by 2": {"crop_padding": 2},
    "temperature 1": {"distill_temperature": 1.0},
    "temperature 4": {"distill_temperature": 4.0},
    "token features too": {"feature_weight": 1.0},
    "weights averaged by 0.999": {"ema": 0.999},
}
RATES = {"lr 0.00001": 1e-5, "lr 0.00003": 3e-5, "lr 0.0001": 1e-4, "lr 0.0005": 5e-4, "lr 0.001": 1e-3}
RECIPES: dict[str, dict[str, Any]] = {  # what is changed of the base
    "base": {},
    "half of the loss from labels": {"distill_weight": 0.5},
    "half from labels smoothed by 0.1": {"distill_weight": 0.5, "label_smoothing": 0.1},
    "a tenth from labels": {"distill_weight": 0.9},
    "lr 0.0002": {"lr": 2e-4},
    "weights averaged by 0.99": {"ema": 0.99},
    "no shifted crops": {"crop_padding": 0},
    "muon with lr 0.001": {"optimizer": "muon", "lr": 1e-3},
    "muon with lr 0.005": {"optimizer": "muon", "lr": 5e-3},
} | {f"lr 0.0002 with {name}": {"lr": 2e-4, **changes} for name, changes in FURTHER.items()}
RECIPES |= {name: {"lr": lr} for name, lr in RATES.items() if lr != BASE.lr}
RECIPES |= {f"{name} with mixup or CutMix": {"lr": lr, "mixup": 0.8, "cutmix": 1.0} for name, lr in RATES.items()}
for name, lr in RATES.items():
    RECIPES[f"{name} with half of the loss from labels"] = {"lr": lr, "distill_weight": 0.5}
    RECIPES[f"{name} with token features too"] = {"lr": lr, "feature_weight": 1.0}
START = "no training"


def main() -> None:
    """Trains by every recipe that is not stored yet and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--targets", type=texts, default=["params=0.3", "params=0.1"])
    options.add_argument("--seeds", type=numbers, default=[0])
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--train-images", type=int, default=54_000)
    options.add_argument("--val-images", type=int, help="judged on (default: all, here 6,000)")
    options.add_argument("--amp", default=BASE.amp)
    options.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="cells to measure")
    options.add_argument("--page-only", action="store_true", help="train nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject, progress = Subject.of(given), make_progress()
    cells = Cells(given.out / f"recipe-choices-{subject.label}.jsonl")
    place, preprocessing, teacher = subject.data, subject.origin.preprocessing, subject.origin.model
    val = open_data(place, preprocessing, limit=given.val_images).val
    assert val is not None, place
    judge = Judge(teacher, val)
    dense, n = judge.dense.top1, judge.dense.images
    shared = {"model": subject.label, "data": place, "images": subject.images, "epochs": given.epochs}
    shared |= {"train_images": given.train_images}
    shared |= {} if given.val_images is None else {"val_images": given.val_images}
    shared |= {} if given.amp == BASE.amp else {"amp": given.amp}
    starts = Starts(subject, progress)
    jobs = [(t, s, r) for s in given.seeds for t in given.targets for r in (START, *RECIPES)]
    for target, seed, recipe in jobs:
        settings = {**shared, "target": target, "seed": seed, "recipe": recipe}
        if given.page_only or settings in cells or not wanted(given.only, settings):
            continue
        model = starts.of(Target.parse(target), seed)[1].model
        assert model is not None
        if recipe != START:
            how = replace(BASE, **RECIPES[recipe], epochs=given.epochs, seed=seed, amp=given.amp)
            train = open_data(
                place, preprocessing, seed=seed, batch_size=how.batch_size, limit=given.train_images,
                augment=AugmentSettings.from_json(how.to_json()),
            ).train  # fmt: skip
            fit(model, train, val, how, teacher=teacher)
        quality = judge(model)
        found = {"top1": quality.top1, "divergence": quality.divergence, "changes": RECIPES.get(recipe, {})}
        cells.put(settings, found)
        progress.line(f"{recipe} {target} {seed}: {100 * quality.top1:.2f} %, {quality.divergence:.4f} nats")
    rows = [row for row in cells if all(row[k] == v for k, v in shared.items())]
    listing = []
    for name in (START, *RECIPES):
        line = []
        for target in given.targets:
            here = [r for r in rows if (r["recipe"], r["target"]) == (name, target)]
            line += [mean_sd([100 * r["top1"] for r in here], 2)]
            line += [mean_sd([1000 * r["divergence"] for r in here if "divergence" in r], 1)]
        if any(cell != "-" for cell in line):
            listing.append([name, *line])
    about = setting(given.threads, given.seed) | subject.describe(dense)
    about["model"] = f"{subject.label}, dense top-1 {100 * dense:.2f} % of {n:,} validation images"
    about["seed"] = ", ".join(map(str, given.seeds))
    fixed = {k: v for k, v in BASE.to_json().items() if k not in ("epochs", "seed")} | {"amp": given.amp}
    about["calibration"] = f"{subject.images} training images, drawn by the seed, for scores and refit"
    about["base"] = f"{given.epochs} epochs of {given.train_images:,} images, {fixed}"
    about["interval"] = (
        f"two recipes that differ by less than about {0.2 * math.sqrt(6000 / n):.1f} points are alike: other images "
        "could turn them"
    )
    about["command"] = about["command"].replace(" --page-only", "")
    head = ["changed", *(cell for t in given.targets for cell in (f"top-1 %, {t}", "divergence, mnat"))]
    title = f"{subject.label}: what a short training after pruning should be like"
    write(given.out, f"recipe-choices-{subject.label}", title, [table(head, listing)], cells.path.name, about)


if __name__ == "__main__":
    main()
