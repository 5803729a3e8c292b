"""Put a trained Fashion-MNIST ViT into the package: weights, measured accuracies, learning curve, model card.

    python tools/ship_fmnist.py WEIGHTS.safetensors RECORD.json --made-by "the commands that trained it"

RECORD.json holds {"h": the training's history, "s": its settings}. The full test set is needed once, to be measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitprune import models
from vitprune.data import open_data
from vitprune.evaluate import accuracy

ASSETS = Path(__file__).parents[1] / "src" / "vitprune" / "assets" / "fmnist_vit"


def main() -> None:
    """Writes the files."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("weights", type=Path)
    options.add_argument("record", type=Path)
    options.add_argument("--made-by", required=True)
    given = options.parse_args()
    record = json.loads(given.record.read_text())
    (ASSETS / "model.safetensors").write_bytes(given.weights.read_bytes())
    loaded = models.load("shipped:fmnist-vit")
    lines = []
    sets = (("all 10,000 test images", "fashion-mnist"), ("the 1,000 shipped test images", "fashion-mnist-sample"))
    for name, data in sets:
        test = open_data(data, loaded.preprocessing, num_classes=10).test
        assert test is not None
        found = accuracy(loaded.model, test)
        low, high = found.ci95
        lines.append(f"| {name} | {100 * found.top1:.2f} % | {100 * low:.2f} to {100 * high:.2f} % |")
    epochs = record["h"]["epochs"]
    (ASSETS / "history.json").write_text(json.dumps(record, indent=1) + "\n")
    _draw(epochs, ASSETS / "curve.png")
    best = max(epochs, key=lambda e: e["val_top1"])
    parameters = sum(p.numel() for p in loaded.model.parameters())
    card = f"""# A small ViT for Fashion-MNIST

timm `VisionTransformer`, 28 x 28, patch 4, one channel, width 96, 6 blocks, 4 heads, {parameters:,} parameters.

| measured on | top-1 | 95 % interval |
| --- | ---: | ---: |
{chr(10).join(lines)}

Trained by {given.made_by} Seed {record["s"]["seed"]}, {len(epochs)} epochs on 54,000 training images; 6,000 of the training
images were held out for validation (best epoch: {100 * best["val_top1"]:.2f} %), the test images chose nothing, and were
measured after training. Settings and history: `history.json`.

![Training loss and validation top-1 by epoch](curve.png)

Data: Fashion-MNIST, Zalando Research, MIT licence.
"""
    (ASSETS / "README.md").write_text(card)
    print(card)


def _draw(epochs: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, loss = pyplot.subplots(figsize=(6, 3), layout="constrained")
    number = [e["epoch"] for e in epochs]
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
