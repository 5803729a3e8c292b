"""Accuracy without training: scores and the closed-form refit, at several budgets.

    python benchmarks/one_shot.py                  # the shipped ViT on the 10,000 Fashion-MNIST test images

Every cell starts from the same checkpoint and sees the same 512 training images (labels for taylor and fisher alone).
"""

from __future__ import annotations

import time

from record import parser, setting, table, write

import vitprune
from vitprune.data import open_data
from vitprune.evaluate import accuracy
from vitprune.progress import make_progress

METHODS = ("random", "magnitude-l2", "lamp", "taylor", "fisher", "energy", "variance")


def main() -> None:
    """Runs all cells and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("--model", default="shipped:fmnist-vit")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--targets", default="macs=0.75,macs=0.5,macs=0.35")
    options.add_argument("--images", type=int, default=512, help="calibration images")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    origin = vitprune.load_model(given.model)
    data = open_data(given.data, origin.preprocessing, seed=given.seed, calibration=given.images)
    assert data.calibration is not None and data.test is not None
    graph = vitprune.trace(origin)
    dense = accuracy(origin.model, data.test)
    rows = []
    for method in METHODS:
        began = time.monotonic()
        scores = vitprune.score(graph, origin, method, given.seed, data.calibration)
        scoring = time.monotonic() - began
        for target in given.targets.split(","):
            plan = vitprune.allocate(graph, scores, target)
            small = vitprune.shrink(origin, graph, plan)
            cut = accuracy(small, data.test)
            began = time.monotonic()
            vitprune.refit(origin, small, graph, plan, data.calibration)
            seconds = time.monotonic() - began
            after = accuracy(small, data.test)
            row = {"method": method, "target": target, "macs": plan.obtained["macs"]["ratio"], "cut": cut.top1}
            row |= {"refitted": after.top1, "score_s": scoring, "refit_s": seconds}
            rows.append(row)
            progress.line(f"{method} {target}: {100 * cut.top1:.2f}, {100 * after.top1:.2f} %")
    cells = [
        (
            r["method"],
            r["target"],
            f"{r['macs']:.3f}",
            *(f"{100 * r[k]:.2f}" for k in ("cut", "refitted")),
            *(f"{r[k]:.1f}" for k in ("score_s", "refit_s")),
        )
        for r in rows
    ]
    head = ("score", "target", "MACs ratio", "top-1 % cut", "top-1 % refitted", "scoring s", "refit s")
    about = setting(given.threads, given.seed) | {
        "model": f"{given.model}, dense top-1 {100 * dense.top1:.2f} % of {dense.n:,} test images",
        "calibration": f"{given.images} training images of {given.data}; no training",
        "interval": "about 0.5 points around 92 %, 1 point around 50 % (95 %)",
    }
    write(given.out, "one-shot", "Pruned without training", [table(head, cells)], rows, about)


if __name__ == "__main__":
    main()
