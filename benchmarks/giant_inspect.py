"""A ViT-g (1.1 billion parameters) inspected on the meta device: groups, MACs and parameters without any weights.

With --prune the model is also built (4.3 GiB of random weights), pruned to half of its MACs and checked, at 224 pixels.
"""

from __future__ import annotations

import gc
import resource
import time
from collections import Counter
from typing import Any

import torch
from record import parser, setting, table, write

GIB = 2**30


def peak() -> float:
    """Highest resident memory of this process so far, in GiB (Linux: ru_maxrss is in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def build(name: str, size: int, device: str) -> torch.nn.Module:
    """The model with random weights, or with none on the meta device."""
    import timm

    with torch.device(device):
        model: torch.nn.Module = timm.create_model(name, img_size=size).eval()
    return model


def inspect(name: str, size: int) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Time, memory and what was found; and a row per kind of group."""
    from vitprune.trace import trace

    trace(build("vit_tiny_patch16_224", 224, "meta"), (torch.empty(2, 3, 224, 224, device="meta"),))  # loads libraries
    libraries = peak()
    start = time.perf_counter()
    model = build(name, size, "meta")
    built = time.perf_counter()
    graph = trace(model, (torch.empty(2, 3, size, size, device="meta"),))
    end = time.perf_counter()
    macs, params = graph.cost()
    assert params == sum(p.numel() for p in model.parameters())
    found = {
        "step": "inspect",
        "image": size,
        "build_s": built - start,
        "trace_s": end - built,
        "peak_gib": peak(),
        "libraries_gib": libraries,
        "params": params,
        "macs": macs,
        "groups": len(graph.groups),
        "unknown_operators": len(graph.unknown_ops),
    }
    counts = Counter((g.kind, g.lanes, g.size) for g in graph.groups)
    half = {g.name: g.size // 2 for g in graph.groups if g.kind in ("heads", "mlp")}
    halved = graph.cost(half)
    found |= {"half_macs": halved[0], "half_params": halved[1]}
    return found, [(kind, number, lanes, size) for (kind, lanes, size), number in counts.items()]


def prune(name: str, seed: int) -> dict[str, Any]:
    """Time and memory of trace, score, plan, shrink and check with real weights, at 224 pixels."""
    from vitprune.allocate import allocate
    from vitprune.score import score
    from vitprune.shrink import difference, keep_from, shrink
    from vitprune.trace import trace

    torch.manual_seed(seed)
    model, x = build(name, 224, "cpu"), torch.randn(2, 3, 224, 224)
    gc.collect()
    dense = peak()
    start = time.perf_counter()
    graph = trace(model, (x,))
    plan = allocate(graph, score(graph, model, "magnitude-l2"), "macs=0.5")
    small = shrink(model, graph, plan, example=(x,), check=False)
    cut = time.perf_counter()
    gap = difference(model, small, keep_from(graph, plan), (x,), {})
    end = time.perf_counter()
    assert gap < 1e-4, gap
    left = sum(p.numel() for p in small.parameters())
    ratio = graph.cost(plan.sizes())[0] / graph.cost()[0]
    return {
        "step": "prune", "image": 224, "prune_s": cut - start, "check_s": end - cut, "gap": gap,
        "model_peak_gib": dense,
        "peak_gib": peak(), "params": left, "macs_ratio": ratio,
    }  # fmt: skip


def main() -> None:
    """Inspect, maybe prune, and write the page."""
    options = parser(__doc__)
    options.add_argument("--model", default="vit_giant_patch14_dinov2")
    options.add_argument("--size", type=int, default=518, help="image size in pixels")
    options.add_argument("--prune", action="store_true", help="also build and prune it (12 GiB of memory)")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    found, kinds = inspect(args.model, args.size)
    rows = [found]
    facts = [
        ("parameters", f"{found['params']:,}"),
        (f"MACs per image at {args.size} pixels (FLOPs / 2)", f"{found['macs']:,}"),
        ("the same with half of the heads and of the MLP units", f"{found['half_macs']:,}"),
        ("parameters with half of the heads and of the MLP units", f"{found['half_params']:,}"),
        ("groups", found["groups"]),
        ("operators without a rule", found["unknown_operators"]),
        ("time to build on the meta device", f"{found['build_s']:.2f} s"),
        ("time to trace", f"{found['trace_s']:.2f} s"),
        ("peak resident memory of the process", f"{found['peak_gib']:.2f} GiB"),
        ("of it Python and its libraries, after a tiny model", f"{found['libraries_gib']:.2f} GiB"),
    ]
    sections = [
        table(("inspection on the meta device", "value"), facts),
        table(("kind", "groups", "lanes", "units per lane"), kinds),
    ]
    if args.prune:
        done = prune(args.model, args.seed)
        rows.append(done)
        facts = [
            ("trace, score, plan, shrink", f"{done['prune_s']:.1f} s"),
            ("check against the masked dense model", f"{done['check_s']:.1f} s, difference {done['gap']:.1e}"),
            ("MACs obtained (asked for 0.5)", f"{done['macs_ratio']:.4f}"),
            ("parameters left", f"{done['params']:,}"),
            ("peak resident memory with the dense model alone", f"{done['model_peak_gib']:.1f} GiB"),
            ("peak resident memory over all", f"{done['peak_gib']:.1f} GiB"),
        ]
        sections.append(table(("pruning with real weights, 224 pixels", "value"), facts))
    write(
        args.out, "giant-inspect", f"{args.model} on the meta device", sections, rows, setting(args.threads, args.seed)
    )


if __name__ == "__main__":
    main()
