"""Measured speed-up of ViT-B/16, BEiT-B/16 and DeiT-B/16 at 50, 75 and 95 % removed, beside what was published.

    python benchmarks/domain_speed.py                     # batch 1 and 32, one thread
    python benchmarks/domain_speed.py --batches 1,8 --only ratio=0.5

A speed-up is a matter of shapes, not of what is learned, so weights are random, and every kind of group (residual
width, heads, q/k and v dims, MLP) loses the same share of its units: "isomorphic", by magnitude. Dense and pruned model
take turns. Cells are stored as they are measured, so a run that was stopped goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from cells import Cells, wanted
from record import parser, setting, shown, table, write
from torch import nn

import vitprune
from vitprune.evaluate.latency import timed, using_threads
from vitprune.modes import evaluating
from vitprune.pipeline.dg_settings import EVERY_KIND
from vitprune.progress import make_progress

MODELS = {
    "vit_base_patch16_224": "2.5x",
    "beit_base_patch16_224": "1.81x",
    "deit_base_patch16_224": "2.15x",
}  # published at 50 %, GPU and batch not stated
RATIOS = (0.5, 0.75, 0.95)
METRICS = ("params", "macs", "units")
Row = dict[str, Any]


def numbers(text: str) -> tuple[int, ...]:
    """The numbers in "1,32"."""
    return tuple(int(part) for part in text.split(","))


def pruned(model: nn.Module, graph: Any, x: torch.Tensor, target: str, round_to: int) -> tuple[nn.Module, Row]:
    """The smaller model, and the shares that stay."""
    scores = vitprune.score(graph, model, "magnitude-l2")
    plan = vitprune.allocate(graph, scores, target, scope="isomorphic", kinds=EVERY_KIND, round_to=round_to)
    small = vitprune.shrink(model, graph, plan, x)
    return small, {f"{name}_share": plan.obtained[name]["ratio"] for name in ("macs", "params")}


def speed(dense: nn.Module, small: nn.Module, x: torch.Tensor, repeats: int, threads: int) -> Row:
    """Times in ms, and their ratios turn by turn, after a turn to warm up."""
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    with using_threads(threads), evaluating(dense, small), torch.no_grad():
        for turn in range(repeats + 1):
            for name, model in (("dense", dense), ("pruned", small)):
                ms = timed(model, x)
                if turn:
                    times[name].append(ms)
    return {"dense_ms": times["dense"], "pruned_ms": times["pruned"]}


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table, and what it can be compared with."""
    lines = []
    for row in sorted(rows, key=lambda r: (list(MODELS).index(r["model"]), r["ratio_of"], r["ratio"], r["batch"])):
        ratios = [d / p for d, p in zip(row["dense_ms"], row["pruned_ms"], strict=True)]
        told = MODELS[row["model"]] if row["ratio"] == 0.5 else ""
        removed = f"{row['ratio']:.0%} of {row['ratio_of']}"
        lines.append(
            [row["model"], removed, row["batch"], f"{row['params_share']:.2%}", f"{row['macs_share']:.2%}",
             f"{sorted(row['dense_ms'])[len(row['dense_ms']) // 2]:.1f}", shown(ratios), told]
        )  # fmt: skip
    head = ["model", "removed", "batch", "parameters", "MACs", "dense ms", "speed-up (p10 to p90)", "published at 50 %"]
    return [
        table(head, lines),
        "The published ratios (arXiv 2504.04196) do not say of what the 50 % are, nor batch and device. Half of the "
        "parameters or MACs cannot give more than about twice the speed by work alone; half of the units in every "
        "group, heads and their dims both, leave about a fifth of either.",
    ]


def main() -> None:
    """Measures what is not stored yet, and writes the page."""
    import timm

    options = parser(__doc__)
    options.set_defaults(threads=1)
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--batches", type=numbers, default=(1, 32))
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--round-to", type=int, default=8)
    options.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    options.add_argument("--only", action="append", default=[], help="NAME=VALUE,... of model, ratio, ratio_of, batch")
    options.add_argument("--page-only", action="store_true", help="measure nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    said, cells = make_progress(), Cells(given.out / "domain-speed.jsonl")
    common = {"threads": given.threads, "round_to": given.round_to, "size": given.size}
    for name in () if given.page_only else given.models:
        torch.manual_seed(given.seed)
        dense, x = timm.create_model(name, img_size=given.size).eval(), torch.randn(2, 3, given.size, given.size)
        graph = None
        for metric in METRICS:
            for ratio in RATIOS:
                about = {"model": name, "ratio_of": metric, "ratio": ratio, **common}
                todo = [b for b in given.batches if wanted(given.only, {**about, "batch": b})]
                todo = [b for b in todo if {**about, "batch": b} not in cells]
                if not todo:
                    continue
                graph = vitprune.trace(dense, x) if graph is None else graph
                small, shares = pruned(dense, graph, x, f"{metric}={round(1 - ratio, 9)}", given.round_to)
                for batch in todo:
                    found = speed(dense, small, x[:1].repeat(batch, 1, 1, 1), given.repeats, given.threads)
                    cells.put({**about, "batch": batch}, {**shares, **found})
                    gain = math.exp(sum(math.log(d / p) for d, p in zip(*found.values(), strict=True)) / given.repeats)
                    said.line(f"{name} {ratio:.0%} of {metric}, batch {batch}: {gain:.2f}x")
    rows = [r for r in cells if all(r[k] == v for k, v in common.items())]
    about = setting(given.threads, given.seed)
    about["command"] = about["command"].replace(" --page-only", "")
    about["models"] = f"timm, random weights, {given.size} px, float32"
    about["measured"] = f"median of {given.repeats} turns after one to warm up, sizes are multiples of {given.round_to}"
    title = "Speed-up at 50, 75 and 95 % removed"
    write(given.out, "domain-speed", title, page(rows), cells.path.name, about)


if __name__ == "__main__":
    main()
