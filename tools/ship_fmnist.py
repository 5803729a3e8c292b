"""Put a Fashion-MNIST ViT that `vitprune train` saved into the package, with its accuracies, curve and model card.

    python tools/ship_fmnist.py FOLDER --teacher FOLDER

The full test set is needed once, to be measured. How the two were trained: benchmarks/train_fmnist.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from vitprune import models
from vitprune.data import open_data
from vitprune.evaluate import accuracy

ASSETS = Path(__file__).parents[1] / "src" / "vitprune" / "assets" / "fmnist_vit"
TESTS = (("all 10,000 test images", "fashion-mnist"), ("the 1,000 shipped test images", "fashion-mnist-sample"))


def main() -> None:
    """Writes the files."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--teacher", type=Path, required=True)
    given = options.parse_args()
    runs = {"student": _run(given.folder), "teacher": _run(given.teacher)}
    shutil.copyfile(given.folder / "model.safetensors", ASSETS / "model.safetensors")
    (ASSETS / "history.json").write_text(json.dumps(runs, indent=1) + "\n")
    epochs = runs["student"]["history"]["epochs"]
    _draw(epochs, ASSETS / "curve.png")
    loaded = models.load("shipped:fmnist-vit")
    lines = []
    for name, data in TESTS:
        test = open_data(data, loaded.preprocessing, num_classes=10).test
        assert test is not None
        found = accuracy(loaded.model, test)
        low, high = found.ci95
        lines.append(f"| {name} | {100 * found.top1:.2f} % | {100 * low:.2f} to {100 * high:.2f} % |")
    best, taught = (runs[name]["history"]["best_val_top1"] for name in ("student", "teacher"))
    parameters = sum(p.numel() for p in loaded.model.parameters())
    card = f"""# A small ViT for Fashion-MNIST

timm `VisionTransformer`, 28 x 28, patch 4, one channel, width 96, 6 blocks, 4 heads, {parameters:,} parameters.

| measured on | top-1 | 95 % interval |
| --- | ---: | ---: |
{chr(10).join(lines)}

Trained by `vitprune train` on two CPU cores: {len(epochs)} epochs on 54,000 training images, 6,000 held out for
choosing the epoch (validation top-1 {100 * best:.2f} %), with a residual network of 0.4 M parameters as teacher, itself
trained by `vitprune train` on the same images (validation top-1 {100 * taught:.2f} %). Settings and
history of both: `history.json`.

The test images chose nothing. They were measured once before, with earlier weights of a shorter training (92.30 %).

![Training loss and validation top-1 by epoch](curve.png)

Data: Fashion-MNIST, Zalando Research, MIT licence.
"""
    (ASSETS / "README.md").write_text(card)
    print(card)


def _run(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: metrics[name] for name in ("training", "history")}


def _draw(epochs: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, loss = pyplot.subplots(figsize=(6, 3), layout="constrained")
    number = [e["epoch"] + 1 for e in epochs]
    loss.plot(number, [e["loss"] for e in epochs], color="tab:gray")
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss", color="tab:gray")
    top1 = loss.twinx()
    top1.plot(number, [100 * e["val_top1"] for e in epochs], color="tab:blue")
    top1.set_ylabel("validation top-1, %", color="tab:blue")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
