"""What more calibration images are worth: the defaults without training, from few images to most of the training set.

    python benchmarks/calibration_size.py                                   # the shipped Fashion-MNIST ViT
    python benchmarks/calibration_size.py --sizes 512,8192 --targets 0.33 --seeds 0
    python benchmarks/calibration_size.py --sizes 512,2048 --blends 0,0.25,0.5  # shares of them blended with noise

Rotation, scores and refit see the same images, without labels but for the draw, which takes equally many of each class.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from cells import Cells, wanted
from matplotlib import pyplot
from one_shot import texts
from record import mean_sd, parser, setting, table, write
from subject import Subject, add_options

import vitprune
from vitprune.progress import make_progress
from vitprune.refit import refit

SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TARGETS = (0.5, 0.33, 0.25)
SCORE, SCOPE = "output-error", "per-cost"
Row = dict[str, Any]


def measure(subject: Subject, targets: Sequence[float], seed: int, blend: float) -> dict[float, Row]:
    """What the defaults give with the subject's number of images at shares of the MACs."""
    batches, began = subject.calibration(seed, blend), time.monotonic()
    source = vitprune.rotate(subject.origin, subject.graph, batches)
    scores = vitprune.score(subject.graph, source, SCORE, seed, batches)
    shared, found = time.monotonic() - began, {}
    for target in targets:
        began = time.monotonic()
        plan = vitprune.allocate(subject.graph, scores, f"macs={target}", scope=SCOPE)
        small = vitprune.shrink(source, subject.graph, plan)
        refit(source.model, small, subject.graph, plan, batches)
        seconds = {"shared_seconds": shared, "refit_seconds": time.monotonic() - began}
        found[target] = {"macs": plan.obtained["macs"]["ratio"], "top1": subject.top1(small), **seconds}
    return found


def points(rows: Sequence[Row], target: float, blend: float) -> dict[int, list[Row]]:
    """The target's rows with that share of blended images, by number of images."""
    mine = [row for row in rows if row["target"] == target and row["blend"] == blend]
    return {n: [r for r in mine if r["images"] == n] for n in sorted({r["images"] for r in mine})}


def page(rows: Sequence[Row], dense: float, picture: str) -> list[str]:
    """Points lost by number of images and target, and the seconds."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    listing = []
    for n, blend in sorted({(row["images"], row["blend"]) for row in rows}):
        here = [row for row in rows if row["images"] == n and row["blend"] == blend]
        lost = [mean_sd([100 * (dense - r["top1"]) for r in here if r["target"] == t], 2) for t in targets]
        spent = [mean(r[name] for r in here) for name in ("shared_seconds", "refit_seconds")]
        listing.append([f"{n:,}", f"{blend:.0%}", *lost, *(f"{s:.0f}" for s in spent), len({r["seed"] for r in here})])
    head = [
        "images",
        "blended",
        *(f"lost at {100 * t:.0f}% of the MACs" for t in targets),
        "rotate and score, s",
        "refit, s",
        "draws",
    ]
    return [
        f"Dense: {100 * dense:.2f} %. Points of top-1 lost without any training, with the standard deviation over "
        "draws where there is more than one:",
        table(head, listing),
        f"![Top-1 against the number of calibration images]({picture})",
    ]


def draw(rows: Sequence[Row], dense: float, path: Path) -> None:
    """Top-1 against the number of images, a colour for each target, a kind of line and mark for each blended share."""
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(100 * dense, color="black", linewidth=1, linestyle=":", label="dense")
    targets = list(dict.fromkeys(row["target"] for row in rows))
    blends = sorted({row["blend"] for row in rows})
    for (i, target), (j, blend) in product(enumerate(targets), enumerate(blends)):
        found = points(rows, target, blend)
        heights = [100 * mean(r["top1"] for r in rows) for rows in found.values()]
        name = f"{100 * target:.0f}% of the MACs" + (f", {blend:.0%} blended" if blend else "")
        line, mark = ("-", "--", ":", "-.")[j % 4], "osD^"[j % 4]
        axes.plot(list(found), heights, f"C{i}", linestyle=line, marker=mark, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["images"] for row in rows}), minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("calibration images")
    axes.set_ylabel("top-1, %, without training")
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", ncols=len(blends), loc="outside lower center")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Measures what is missing and writes the dated page and figure."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--sizes", type=lambda v: [int(n) for n in texts(v)], default=list(SIZES))
    options.add_argument("--blends", type=lambda v: [float(b) for b in texts(v)], default=[0.0], help="shares of them")
    options.add_argument("--targets", type=lambda v: [float(t) for t in texts(v)], default=list(TARGETS))
    options.add_argument("--seeds", type=lambda v: [int(s) for s in texts(v)], default=[0, 1, 2])
    options.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="cells to measure")
    options.add_argument("--page-only", action="store_true", help="measure nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    base, progress = Subject.of(given), make_progress()
    cells = Cells(given.out / f"calibration-size-{base.label}.jsonl")
    known = {name: value for name, value in base.settings.items() if name != "images"}
    dense_key = {**known, "target": 1.0}
    if dense_key not in cells:
        cells.put(dense_key, {"top1": base.top1(base.origin.model)})
    dense = float((cells.get(dense_key) or {})["top1"])
    for seed in given.seeds:
        for size, blend in product(given.sizes, given.blends):
            subject, share = replace(base, images=size), {"blend": blend} if blend else {}
            keys = {t: {**subject.settings, **share, "target": t, "seed": seed} for t in given.targets}
            missing = [t for t, key in keys.items() if key not in cells and wanted(given.only, key)]
            if given.page_only or not missing:
                continue
            for target, values in measure(subject, missing, seed, blend).items():
                cells.put(keys[target], values)
                progress.line(
                    f"{size} images, {blend:.0%} blended, {target}, draw {seed}: {100 * values['top1']:.2f} %"
                )
    rows = [{"blend": 0.0} | r for r in cells if all(r[k] == v for k, v in known.items()) and "seed" in r]
    about = setting(given.threads, given.seeds[0]) | base.describe(dense)
    about["seed"] = f"calibration drawn by {', '.join(map(str, given.seeds))}"
    about["calibration"] = f"training images of {base.data}, equally many of each class; no training"
    about["method"] = f"the defaults: rotation, score {SCORE}, scope {SCOPE}, refit"
    about["command"] = about["command"].replace(" --page-only", "")
    picture = f"{date.today().isoformat()}-calibration-size-{base.label}.png"
    given.out.mkdir(parents=True, exist_ok=True)
    draw(rows, dense, given.out / picture)
    title = f"{base.label}: what calibration images are worth"
    write(given.out, f"calibration-size-{base.label}", title, page(rows, dense, picture), cells.path.name, about)


if __name__ == "__main__":
    main()
