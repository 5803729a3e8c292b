"""What bf16 is worth in training on this CPU, by width and number of tokens: steps in float32 and bf16 in turns.

    python benchmarks/precision.py --threads 1

The step is that of `vitprune.recover.fit`: forward, loss, backward, clipping, AdamW. Weights are random: the time
does not depend on them.
"""

from __future__ import annotations

import copy

import numpy as np
import timm
import torch
from masks_overhead import Side, in_turns
from record import parser, setting, shown, table, write

from vitprune.recover.runtime import resolve_amp


def main() -> None:
    """Measures every width at every size of image and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("--widths", default="64,96,112,128,150,192,256,384")
    options.add_argument("--sizes", default="28/7/64,96/16/32,224/16/4", help="pixels/patch/batch")
    options.add_argument("--depth", type=int, default=4)
    options.add_argument("--turns", type=int, default=15)
    given = options.parse_args()

    torch.set_num_threads(given.threads)
    rng, rows, lines = np.random.default_rng(given.seed), [], []
    for size in given.sizes.split(","):
        pixels, patch, batch = map(int, size.split("/"))
        for width in map(int, given.widths.split(",")):
            torch.manual_seed(given.seed)
            shape = {"img_size": pixels, "patch_size": patch, "embed_dim": width, "depth": given.depth}
            model = timm.create_model("vit_tiny_patch16_224", **shape, num_heads=2, num_classes=10)
            sides = Side(model, None, "cpu", "no"), Side(copy.deepcopy(model), None, "cpu", "bf16")
            x, y = torch.randn(batch, 3, pixels, pixels), torch.randint(0, 10, (batch,))
            times = in_turns(sides, x, y, given.turns, 2, rng)
            plain, half = np.median(times, axis=0)
            rows.append({"pixels": pixels, "patch": patch, "batch": batch, "width": width, "times_ms": times.tolist()})
            ratios = shown(list(times[:, 0] / times[:, 1]))
            lines.append([f"{pixels} / {patch}, batch {batch}", width, f"{plain:.0f}", f"{half:.0f}", ratios])
            print(*lines[-1], flush=True)
    has = [name for name in ("avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{name}_supported", bool)()]
    about = setting(given.threads, given.seed)
    about["bf16 units"] = ", ".join(has) or "none"
    about["amp auto"] = resolve_amp("auto", "cpu")
    about["model"] = f"timm's ViT, {given.depth} blocks, 2 heads, MLP ratio 4, random weights"
    head = ("pixels / patch", "width", "float32, ms", "bf16, ms", "bf16 is faster by")
    text = "A training step in float32 and bf16 in turns; medians, ratios with 10th to 90th percentile."
    write(given.out, "precision", "What bf16 is worth in training", [text, table(head, lines)], rows, about)


if __name__ == "__main__":
    main()
