"""Which kinds and which scope to prune by default: top-1 on validation images after each step.

    python benchmarks/kinds_scope.py          # the shipped ViT, 6,000 images to tune on, 15 combinations

Every combination starts from the same checkpoint and gets the same images in the same order: cut, refitted on 512
images, then tuned with the dense model as teacher. The test images play no part.
"""

from __future__ import annotations

import time

from record import parser, setting, table, write

import vitprune
from vitprune.data import AugmentSettings, open_data
from vitprune.evaluate import accuracy
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings, fit

KINDS = (("mlp",), ("mlp", "heads"), ("mlp", "qk", "v"), ("mlp", "qk", "v", "heads"), ("mlp", "qk", "v", "residual"))
SCOPES = ("isomorphic", "local", "global")


def main() -> None:
    """Runs the combinations and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("--model", default="shipped:fmnist-vit")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--target", default="macs=0.5")
    options.add_argument(
        "--images", type=int, default=6000, help="images to tune on, and at most so many to validate on"
    )
    options.add_argument("--epochs", type=int, default=2)
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    settings = TrainSettings(
        epochs=given.epochs, lr=5e-4, batch_size=64, warmup_epochs=0.5, crop_padding=2, keep="last", seed=given.seed
    )
    rows = []
    for kinds in KINDS:
        for scope in SCOPES:
            began = time.monotonic()
            origin = vitprune.load_model(given.model)
            data = open_data(
                given.data,
                origin.preprocessing,
                seed=given.seed,
                batch_size=settings.batch_size,
                augment=AugmentSettings.from_json(settings.to_json()),
                limit=given.images,
                calibration=512,
            )
            graph = vitprune.trace(origin)
            scores = vitprune.score(graph, origin, "magnitude-l2")
            try:
                plan = vitprune.allocate(graph, scores, given.target, scope=scope, kinds=kinds, round_to=1)
            except vitprune.VitpruneError as error:
                progress.line(f"{'+'.join(kinds)} {scope}: {error}")
                continue
            small = vitprune.shrink(origin, graph, plan)
            cut = accuracy(small, data.val)
            assert data.calibration is not None
            vitprune.refit(origin, small, graph, plan, data.calibration)
            refitted = accuracy(small, data.val)
            fit(small, data.train, data.val, settings, teacher=origin.model, progress=progress)
            after = accuracy(small, data.val)
            row = {
                "kinds": "+".join(kinds),
                "scope": scope,
                "macs": plan.obtained["macs"]["ratio"],
                "params": plan.obtained["params"]["ratio"],
                "cut": cut.top1,
                "refitted": refitted.top1,
                "tuned": after.top1,
                "images": after.n,
                "seconds": time.monotonic() - began,
            }
            rows.append(row)
            progress.line(
                f"{row['kinds']} {scope}: {100 * cut.top1:.2f}, {100 * refitted.top1:.2f}, {100 * after.top1:.2f} %"
            )
    cells = [
        (r["kinds"], r["scope"], *(f"{r[k]:.3f}" for k in ("macs", "params")), *(f"{100 * r[k]:.2f}" for k in TOP1))
        for r in rows
    ]
    head = ("kinds", "scope", "MACs ratio", "parameters ratio", "top-1 % cut", "refitted", "tuned")
    about = setting(given.threads, given.seed) | {
        "model": given.model,
        "tuning": f"{given.epochs} epochs on {given.images} images of {given.data}, dense model as teacher",
        "measured on": f"{rows[0]['images']} validation images (a standard error is about 0.4 points)",
    }
    title = f"Kinds and scopes at {given.target}, ranked by magnitude-l2"
    write(given.out, "kinds-scope", title, [table(head, cells)], rows, about)


TOP1 = ("cut", "refitted", "tuned")

if __name__ == "__main__":
    main()
