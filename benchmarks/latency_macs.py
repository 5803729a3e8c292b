"""What half of the MACs is worth in time: ViT-Ti, ViT-S, ViT-B at 224 pixels, pruned by MLP units, by heads, or both.

Dense and pruned models take turns in one process. Random weights: the time of a forward pass does not depend on them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from record import parser, setting, table, write
from torch import nn

MODELS = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
KINDS: dict[str, tuple[str, ...]] = {"mlp only": ("mlp",), "heads only": ("heads",), "default kinds": ()}


def pruned(model: nn.Module, x: torch.Tensor, target: float) -> tuple[dict[str, nn.Module], list[dict[str, Any]]]:
    """The pruned models by the name of their kinds, and what each obtained; out-of-reach targets take the least."""
    from vitprune.allocate import DEFAULT_KINDS, allocate
    from vitprune.errors import TargetError
    from vitprune.score import score
    from vitprune.shrink import shrink
    from vitprune.trace import trace

    graph = trace(model, (x,))
    scores = score(graph, model, "magnitude-l2")
    models, facts = {}, []
    for title, kinds in KINDS.items():
        chosen, asked = kinds or DEFAULT_KINDS, target
        while True:
            try:
                plan = allocate(graph, scores, f"macs={asked:.2f}", kinds=chosen)
                break
            except TargetError:
                asked += 0.01
        models[title] = shrink(model, graph, plan, example=(x,))
        macs, params = graph.cost(plan.sizes())
        dense_macs, dense_params = graph.cost()
        facts.append(
            {"pruned": title, "kinds": list(chosen), "asked": round(asked, 2), "macs": macs,
             "macs_ratio": macs / dense_macs,
             "params_ratio": params / dense_params}
        )  # fmt: skip
    return models, facts


def main() -> None:
    """Measure all models and write the page."""
    from vitprune.evaluate import latency

    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(MODELS))
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--target", type=float, default=0.5, help="share of the MACs that stays")
    args = options.parse_args()
    import timm

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    x = torch.randn(2, 3, 224, 224)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[Any, ...]] = []
    for name in args.models:
        dense = timm.create_model(name).eval()
        models, facts = pruned(dense, x, args.target)
        measured = latency(
            {"dense": dense, **models},
            x,
            batch_sizes=args.batches,
            threads=args.threads,
            warmup=3,
            repeats=args.repeats,
        )
        base = {r.batch: r.median_ms for r in measured if r.name == "dense"}
        found = {f["pruned"]: f for f in facts}
        for r in measured:
            fact = found.get(r.name, {"macs_ratio": 1.0, "params_ratio": 1.0})
            ratio = r.median_ms / base[r.batch]
            rows.append({"model": name, **r.to_json(), "latency_ratio": ratio, **fact})
            cells.append(
                (name, r.name, r.batch, f"{fact['macs_ratio']:.3f}", f"{fact['params_ratio']:.3f}",
                 f"{r.median_ms:.1f}",
                 f"{r.p10_ms:.1f} to {r.p90_ms:.1f}", f"{ratio:.3f}")
            )  # fmt: skip
        print(f"{name} done", file=sys.stderr, flush=True)
    head = ("model", "pruned", "batch", "MACs ratio", "parameters ratio", "median ms", "p10 to p90", "latency ratio")
    sections = [
        table(head, cells),
        f"Time of the whole batch, float32, {args.repeats} rounds after 3 to warm up; ratios are of medians, to the "
        "dense model at the same batch. Attention products and projections alone are less than half of these models' "
        "MACs: where heads alone cannot reach the target, the row holds the nearest reachable MACs ratio.",
    ]
    write(args.out, "latency-macs", "Latency at half of the MACs", sections, rows, setting(args.threads, args.seed))


if __name__ == "__main__":
    main()
