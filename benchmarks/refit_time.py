"""Minutes that rotation, scoring and the refit take on a large model, and the memory on top of the model.

    python benchmarks/refit_time.py --threads 2                     # ViT-B/16, 1,024 images at 224 px
    python benchmarks/refit_time.py --threads 2 --images 256        # a quarter of them
    python benchmarks/refit_time.py --threads 2 --refit-alone       # without rotation and a score that needs images

Random weights and images: the time does not depend on the values. Images come in batches of 32, made when they are
asked for, as a loader would give them.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

from record import parser, setting, table, write

import vitprune
from vitprune.progress import make_progress

BATCH = 32


class Images:
    """Batches of random images, the same at every pass."""

    def __init__(self, count: int, size: tuple[int, ...]) -> None:
        self.count, self.size = count, size

    def __iter__(self) -> Iterator[Any]:
        import torch

        for start in range(0, self.count, BATCH):
            generator = torch.Generator().manual_seed(start)
            yield torch.randn(min(BATCH, self.count - start), *self.size, generator=generator)


def main() -> None:
    """Times the stages one after the other and writes the dated page."""
    options = parser(__doc__)
    options.add_argument("--model", default="timm:vit_base_patch16_224")
    options.add_argument("--images", type=int, default=1024)
    options.add_argument("--method", default="output-error")
    options.add_argument("--target", default="macs=0.5")
    options.add_argument("--device", default="cpu")
    options.add_argument("--refit-alone", action="store_true", help="no rotation, and magnitudes as scores")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    origin = vitprune.load_model(given.model, device=given.device)
    images = Images(given.images, (origin.preprocessing.channels, *origin.preprocessing.size))
    graph = vitprune.trace(origin)
    rows: list[dict[str, Any]] = []

    def timed(name: str, work: Any) -> Any:
        before, began = _peak(), time.monotonic()
        result = work()
        rows.append({"stage": name, "seconds": time.monotonic() - began, "peak_gib": _peak(), "before_gib": before})
        progress.line(f"{name}: {rows[-1]['seconds']:.0f} s, {rows[-1]['peak_gib']:.1f} GiB")
        return result

    kinds = ("mlp", "qk", "v")
    rotated: Any = origin
    if given.refit_alone:
        scores = vitprune.score(graph, origin, "magnitude-l2")
    else:
        rotated = timed("rotate", lambda: vitprune.rotate(origin, graph, images, kinds))
        scores = timed(given.method, lambda: vitprune.score(graph, rotated, given.method, 0, images, kinds=kinds))
    plan = vitprune.allocate(graph, scores, given.target)
    small = timed("shrink and check", lambda: vitprune.shrink(rotated, graph, plan))
    timed("refit", lambda: vitprune.refit(rotated, small, graph, plan, images))
    cells = [(r["stage"], f"{r['seconds'] / 60:.1f}", f"{r['peak_gib']:.1f}") for r in rows]
    cells.append(("all", f"{sum(r['seconds'] for r in rows) / 60:.1f}", f"{max(r['peak_gib'] for r in rows):.1f}"))
    about = setting(given.threads, given.seed) | {
        "model": f"{given.model}, random weights, {sum(p.numel() for p in origin.model.parameters()):,} parameters",
        "images": f"{given.images} random images, {'x'.join(map(str, images.size))}, in batches of {BATCH}",
        "target": given.target,
        "memory": "peak of the process so far",
    }
    name = f"refit-time-{given.images}"
    write(given.out, name, "Time of a refit", [table(("stage", "minutes", "peak GiB"), cells)], rows, about)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
