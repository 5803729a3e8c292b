"""Accuracy without training when the target is reached in several steps, scored and refitted anew in each.

    python benchmarks/steps.py                  # the shipped ViT on the 10,000 Fashion-MNIST test images

Every cell starts from the same checkpoint and sees the same 512 training images (labels for fisher alone).
"""

from __future__ import annotations

import time

from record import parser, setting, table, write

import vitprune
from vitprune.data import open_data
from vitprune.evaluate import accuracy
from vitprune.models import example
from vitprune.progress import make_progress


def main() -> None:
    """Runs all cells and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("--model", default="shipped:fmnist-vit")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--targets", default="macs=0.5,macs=0.33")
    options.add_argument("--methods", default="refit-error")
    options.add_argument("--scopes", default="local")
    options.add_argument("--steps", default="1,2,4")
    options.add_argument("--images", type=int, default=512, help="calibration images")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    origin = vitprune.load_model(given.model)
    data = open_data(given.data, origin.preprocessing, seed=given.seed, calibration=given.images)
    assert data.calibration is not None and data.test is not None
    dense = accuracy(origin.model, data.test)
    rows = []
    for scope in given.scopes.split(","):
        for method in given.methods.split(","):
            for target in given.targets.split(","):
                for steps in map(int, given.steps.split(",")):
                    began = time.monotonic()
                    small, plan = vitprune.prune(
                        origin.model,
                        example(origin.preprocessing),
                        target,
                        method=method,
                        seed=given.seed,
                        scope=scope,
                        batches=data.calibration,
                        steps=steps,
                    )
                    seconds = time.monotonic() - began
                    row = {"scope": scope, "method": method, "target": target, "steps": steps, "seconds": seconds}
                    row |= {"macs": plan.obtained["macs"]["ratio"], "top1": accuracy(small, data.test).top1}
                    rows.append(row)
                    progress.line(f"{scope} {method} {target} {steps} steps: {100 * row['top1']:.2f} %")
    cells = []
    for row in (r for r in rows if r["steps"] == rows[0]["steps"]):
        same = [r for r in rows if all(r[k] == row[k] for k in ("scope", "method", "target"))]
        shares = f"{min(r['macs'] for r in same):.3f} to {max(r['macs'] for r in same):.3f}"
        cells.append((row["scope"], row["method"], row["target"], shares, *(f"{100 * r['top1']:.2f}" for r in same)))
    head = ("scope", "score", "target", "MACs ratio", *(f"top-1 %, steps {n}" for n in given.steps.split(",")))
    about = setting(given.threads, given.seed) | {
        "model": f"{given.model}, dense top-1 {100 * dense.top1:.2f} % of {dense.n:,} test images",
        "calibration": f"{given.images} training images of {given.data}; refitted in every step, no training",
        "interval": "about 0.5 points around 92 % (95 %)",
    }
    write(given.out, "steps", "Pruned in several steps without training", [table(head, cells)], rows, about)


if __name__ == "__main__":
    main()
