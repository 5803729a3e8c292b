"""Which whole branches a score takes out, against trying them all; and branches together with widths.

    python benchmarks/depth.py                  # the shipped ViT, top-1 on 3,000 validation images

The test images play no part. "tried" takes out, one after the other, the branch without which top-1 is best.
"""

from __future__ import annotations

from record import parser, setting, table, write

import vitprune
from vitprune.data import open_data
from vitprune.evaluate import accuracy
from vitprune.plan import Plan
from vitprune.progress import make_progress

METHODS = ("magnitude-l2", "taylor", "fisher", "energy", "refit-error")
MOST = 4


def main() -> None:
    """Runs all cells and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("--model", default="shipped:fmnist-vit")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--target", default="macs=0.5", help="of branches together with widths")
    options.add_argument("--images", type=int, default=3000, help="validation images")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    origin = vitprune.load_model(given.model)
    data = open_data(given.data, origin.preprocessing, seed=given.seed, limit=given.images, calibration=512)
    assert data.calibration is not None
    graph = vitprune.trace(origin)
    blocks = [g.name for g in graph.groups if g.kind == "block"]
    scores = {m: vitprune.score(graph, origin, m, given.seed, data.calibration) for m in METHODS}
    dense = accuracy(origin.model, data.val)
    rows: list[dict[str, object]] = []

    def measure(plan: Plan, method: str, refit: bool) -> float:
        small = vitprune.shrink(origin, graph, plan)
        if refit:
            vitprune.refit(origin, small, graph, plan, data.calibration)
        top1 = accuracy(small, data.val).top1
        gone = [n for n in plan.pruned() if n in blocks]
        rows.append({"method": method, "gone": gone, "macs": plan.obtained["macs"]["ratio"], "top1": top1})
        progress.line(f"{method} {' '.join(gone)}: {100 * top1:.2f} %")
        return top1

    def without(names: list[str]) -> Plan:
        return vitprune.allocate(graph, scores["energy"], None, kinds=["block"], layer_ratios=dict.fromkeys(names, 0))

    def share(count: int) -> float:
        return 1 - count / len(blocks) + 1e-9

    depth: list[list[str]] = []
    for method in METHODS:
        plans = [vitprune.allocate(graph, scores[method], None, ratios={"block": share(k)}) for k in range(1, MOST + 1)]
        depth.append([method, *(f"{100 * measure(plan, method, False):.2f}" for plan in plans)])
    gone: list[str] = []
    tried: list[str] = []
    for _ in range(MOST):
        found = {b: measure(without([*gone, b]), "tried", False) for b in blocks if b not in gone}
        gone.append(max(found, key=lambda b: found[b]))
        tried.append(f"{100 * found[gone[-1]]:.2f}")
    depth.append(["tried", *tried])
    both: list[list[str]] = []
    for method in ("magnitude-l2", "fisher", "refit-error"):
        plans = [
            vitprune.allocate(graph, scores[method], given.target, ratios={"block": share(k)} if k else None)
            for k in range(MOST)
        ]
        both.append([method, *(f"{100 * measure(plan, method, True):.2f}" for plan in plans)])
    about = setting(given.threads, given.seed) | {
        "model": f"{given.model}, {len(blocks)} branches, dense top-1 {100 * dense.top1:.2f} %",
        "measured on": f"{dense.n:,} validation images of {given.data} (a standard error is about 0.5 points)",
        "calibration": "512 training images; no training",
        "tried": f"in this order: {', '.join(gone)}",
    }
    sections = [
        "Branches alone, nothing refitted:\n\n" + table(("score", *(f"{k} gone" for k in range(1, MOST + 1))), depth),
        f"Branches and widths at {given.target}, refitted:\n\n"
        + table(("score", *(f"{k} gone" for k in range(MOST))), both),
    ]
    write(given.out, "depth", "Whole branches: top-1 % without training", sections, rows, about)


if __name__ == "__main__":
    main()
