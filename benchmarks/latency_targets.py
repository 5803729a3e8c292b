"""Latency asked against latency obtained: ViT-S and ViT-B at 224 pixels, three shares of the dense model's time.

Every plan is measured again after its search, in a comparison of its own: a model shrunk anew, dense and pruned in
turns of random order. Random weights: the time of a forward pass does not depend on them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import parser, setting, shown, spread, table, write

MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")


def main() -> None:
    """Search for every model, batch and share, measure again, and write the page."""
    from vitprune.allocate import DEFAULT_KINDS
    from vitprune.errors import TargetError
    from vitprune.latency import Timing, allocate_latency
    from vitprune.latency.clock import WallClock, at_batch
    from vitprune.progress import Lines
    from vitprune.score import score
    from vitprune.shrink import shrink
    from vitprune.trace import trace

    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(MODELS))
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    options.add_argument("--shares", nargs="+", type=float, default=[0.75, 0.5, 0.33])
    options.add_argument("--name", default="latency-targets", help="of the page")
    options.add_argument("--kinds", nargs="+", default=list(DEFAULT_KINDS))
    options.add_argument("--search-seconds", type=float, default=15.0, help="of a comparison in a search (default 15)")
    options.add_argument("--seconds", type=float, default=30.0, help="of the comparison after a search (default 30)")
    args = options.parse_args()
    import timm

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    x = torch.randn(2, 3, 224, 224)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[Any, ...]] = []
    folder = Path(tempfile.mkdtemp())  # no table of another day
    for name in args.models:
        dense = timm.create_model(name).eval()
        graph = trace(dense, (x,))
        scores = score(graph, dense, "magnitude-l2")
        for batch in args.batches:
            clock = WallClock(at_batch((x,), batch), args.threads)
            timing = Timing(batch, args.threads, cache=folder, seconds=args.search_seconds)
            for share in args.shares:
                began = time.monotonic()
                row: dict[str, Any] = {"model": name, "batch": batch, "asked": share, "kinds": args.kinds}
                try:
                    plan = allocate_latency(
                        dense, graph, scores, f"latency={share}x", (x,),
                        timing=timing, kinds=args.kinds, progress=Lines(),
                    )  # fmt: skip
                except TargetError as error:
                    rows.append({**row, "error": str(error)})
                    cells.append((name, batch, f"{share:g}", "out of reach", "", "", "", "", "", ""))
                    continue
                seconds = time.monotonic() - began
                small = shrink(dense, graph, plan, example=(x,)).eval()
                first = clock.whole([dense, small], 5)
                turns = max(15, int(1000 * args.seconds / first.sum(axis=1).mean()))
                again = clock.whole([dense, small], turns)
                ratio = float(np.median(again[:, 1] / again[:, 0]))
                got = plan.obtained["latency"]
                rows.append(
                    {**row, "obtained": got["ratio"], "again": ratio, "again_dense_ms": spread(again[:, 0]),
                     "again_pruned_ms": spread(again[:, 1]), "turns": turns, "macs": plan.obtained["macs"]["ratio"],
                     "rounds": got["rounds"], "seconds": seconds, "sizes": plan.sizes(),
                     "notes": plan.settings["notes"]}
                )  # fmt: skip
                off, macs = 100 * (ratio / share - 1), plan.obtained["macs"]["ratio"]
                cells.append(
                    (name, batch, f"{share:g}", f"{got['ratio']:.3f}", f"{ratio:.3f}", f"{off:+.1f}",
                     shown(again[:, 1], 1), shown(again[:, 0], 1), f"{macs:.3f}", f"{got['rounds']} in {seconds:.0f} s")
                )  # fmt: skip
                print(cells[-1], file=sys.stderr, flush=True)
    head = ("model", "batch", "asked", "obtained", "measured again", "off, %", "pruned ms", "dense ms", "MACs ratio",
            "rounds")  # fmt: skip
    reached = [r for r in rows if "again" in r]
    within = sum(abs(r["again"] / r["asked"] - 1) <= 0.03 for r in reached)
    sections = [
        table(head, cells),
        f"{within} of {len(reached)} reached targets within 3 % when measured again. Time of the whole batch, float32, "
        f"kinds {', '.join(args.kinds)}. *obtained* is what the search reports, *measured again* a comparison "
        "afterwards: ratios are medians over turns of pruned to dense, in random order within a turn. Times are median "
        "(p10 to p90). The first row of a model and batch includes measuring its table.",
    ]
    about = setting(args.threads, args.seed)
    write(args.out, args.name, "Latency asked and obtained", sections, rows, about)


if __name__ == "__main__":
    main()
