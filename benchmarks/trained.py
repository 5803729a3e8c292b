"""Masks, VTP, one-shot pruning, random pruning and small models from scratch, all after an equal budget of training.

    python benchmarks/trained.py                                     # the shipped Fashion-MNIST ViT, three seeds
    python benchmarks/trained.py --only target=params=0.1 --seeds 0  # some of it
    python benchmarks/trained.py --model "hf:/tmp/dinov2-98-tuned?attn=eager" --label dinov2-98-tuned --images 1024 \
        --train-images 4000 --val-images 1000 --no-mix --features 1 --no-scratch \
        --rates refitted=1e-5,search=3e-5,masked=3e-5,after=1e-4

Every way sees the same images for the same number of epochs, with the dense model as teacher: masks and VTP spend the
first part of them on the search, the others all of them on training what they were cut to. Cells are stored as they are
measured, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from datetime import date
from typing import Any

os.environ.setdefault("TIMM_FUSED_ATTN", "0")  # read when timm is loaded: in bf16 on a CPU a step takes 0.8 of the time

import torch
from cells import Cells
from one_shot import texts
from record import parser, setting, write
from subject import Subject, add_options
from trained_page import CONTROL, PUBLISHED, RATES, TARGETS, UNCUT, draw, page
from trained_ways import MASKS, SCORED, SCRATCH, SHARING, STARTED, STEP, TURNED, Bench


def jobs(given: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(way, target, seed) in the order of measuring: what the others are compared with last."""
    targets = ["one-shot and refit", *(f"masks {s}{more}" for more in (SCORED, "") for s in SHARING), "random"]
    targets += [] if given.no_scratch else ["small from scratch"]
    found = []
    for seed in given.seeds:
        found += [(way, target, seed) for target in TARGETS for way in targets]
        found += [
            (way, asked, seed) for asked in (*RATES, PUBLISHED) for way in ("vtp", f"vtp{TURNED}", "one-shot and refit")
        ]
    for seed in given.seeds:
        found += [("random", asked, seed) for asked in (*RATES, PUBLISHED)]
        found.append((CONTROL, UNCUT, seed))
        found += [("random and refit", target, seed) for target in TARGETS]
        found += [("vtp in 3 steps", asked, seed) for asked in RATES]
        found += [(f"masks {s}{TURNED}", target, seed) for target in TARGETS for s in SHARING]
    return found


def numbers(value: str) -> list[int]:
    """Integers of a list given as one argument."""
    return [int(part) for part in texts(value)]


def described(given: argparse.Namespace, bench: Bench, rows: list[dict[str, Any]]) -> dict[str, str]:
    """The head of the page."""
    subject = bench.subject
    about = setting(given.threads, given.seed) | subject.describe(bench.dense)
    fixed = {k: v for k, v in bench.base.to_json().items() if k not in ("epochs", "lr", "seed", "amp", "batch_size")}
    about["training"] = (
        f"{given.train_images:,} images, {given.epochs[0]} + {given.epochs[1]} epochs, batches of {given.batch} "
        f"({STEP} in searches), amp {given.amp}, the dense model as teacher, {fixed}"
    )
    about["seed"] = ", ".join(map(str, sorted({r["seed"] for r in rows})))
    about["calibration"] = f"{subject.images} training images, drawn by the seed, for what scores decide"
    own, chosen = bench.rates, "by trials on validation images, those of masks from the dense model with a look at "
    chosen += "4,000 test images"
    about["learning rates"] = (
        f"{own.refitted:g} for what was scored and refitted ({own.started(TARGETS[1]):g} at {TARGETS[1]}, but in "
        f"searches), {own.refitted:g} for VTP; {own.search:g} under masks from the dense model, {own.masked:g} after "
        f"them and after random pruning with a refit, {own.after:g} without; {SCRATCH['lr']:g} with "
        f"{SCRATCH['optimizer']} from scratch; {MASKS:g} of masks ({STARTED:g} where they begin with scores): "
    ) + ("those of weights as given" if given.rates else chosen)
    about["command"] = about["command"].replace(" --page-only", "")
    return about


def main() -> None:
    """Trains what is missing and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.set_defaults(images=2048)
    options.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    options.add_argument("--epochs", type=numbers, default=[1, 3], help="of the search, and after it")
    options.add_argument("--train-images", type=int, default=20_000)
    options.add_argument("--val-images", type=int, help="by which epochs are chosen (default: all, here 6,000)")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--amp", default="bf16")
    options.add_argument(
        "--rates", default="", metavar="NAME=RATE,...", help="learning rates of weights, by their names in `Rates`"
    )
    options.add_argument("--no-mix", action="store_true", help="no mixup or CutMix: too much for few images")
    options.add_argument("--features", type=float, default=0.0, help="weight of the teacher's token features")
    options.add_argument("--no-scratch", action="store_true", help="no small models from scratch")
    options.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="cells to measure")
    options.add_argument("--page-only", action="store_true", help="train nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject = Subject.of(given)
    cells = Cells(given.out / f"trained-{subject.label}.jsonl")
    bench = Bench(subject, cells, given)
    if not given.page_only:
        for way, target, seed in jobs(given):
            bench.run(way, target, seed)
    kept = {name: getattr(given, name) for name in ("val_images", "train_images", "epochs", "amp")}
    kept |= {"recipe": bench.recipe}
    rows = [
        r for r in cells
        if subject.owns(r) and r["way"] != "dense" and all(r.get(k) == v for k, v in kept.items())
    ]  # fmt: skip
    order = list(dict.fromkeys(way for way, _, _ in jobs(given)))
    rows.sort(key=lambda r: order.index(r["way"]))
    about = described(given, bench, rows)
    title = f"{subject.label}: pruned in training, and beside it"
    total, name = subject.graph.cost()[1], f"trained-{subject.label}"
    picture = f"{date.today().isoformat()}-{name}.png"
    draw(rows, bench.dense, given.out / picture)
    write(given.out, name, title, page(rows, bench.dense, total, picture), cells.path.name, about)


if __name__ == "__main__":
    main()
