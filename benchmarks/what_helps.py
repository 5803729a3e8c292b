"""What each part of pruning without training is worth: the defaults, with one part changed at a time.

python benchmarks/what_helps.py --test-images 4000                          # the shipped ViT, about six minutes
python benchmarks/what_helps.py --model hf:/tmp/dinov2-98 --images 256 --test-images 2000 --targets 0.33 0.5
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from record import parser, setting, table, write
from subject import Batches, Subject, add_options
from torch import Tensor
from torch.nn import functional as F

import vitprune
import vitprune.refit.refit
from vitprune.allocate.allocate import DEFAULT_KINDS
from vitprune.calibrate import Sensitivity
from vitprune.models.loaded import logits
from vitprune.modes import evaluating

REFIT = sys.modules["vitprune.refit.refit"]  # the package gives the function under this name


@dataclass(frozen=True, slots=True)
class Variant:
    """The defaults but for what is named."""

    name: str
    score: str = "output-error"
    scope: str = "per-cost"
    also: tuple[str, ...] = ()  # kinds
    rotates: bool = True
    plain_draw: bool = False
    patched: Callable[[], Any] | None = None  # a context of the refit alone


def squared(self: Sensitivity, x: Tensor) -> Tensor | None:
    """The weights of positions without the root."""
    found = ROOT(self, x)
    return None if found is None else found.square() / found.square().mean()


ROOT = Sensitivity.weights
VARIANTS = (
    Variant("the defaults"),
    Variant("refit: positions count alike", patched=lambda: patch.object(REFIT, "sensitivities", lambda *_, **__: {})),
    Variant("refit: positions by the sum, not its root", patched=lambda: patch.object(Sensitivity, "weights", squared)),
    Variant("refit: branches to the dense branches", patched=lambda: patch.object(REFIT, "joined", lambda *_: None)),
    Variant("no rotation", rotates=False),
    Variant("the same share everywhere", scope="local"),
    Variant("refit-error, the same share everywhere", "refit-error", "local"),
    Variant("images drawn without a look at labels", plain_draw=True),
    Variant("residual width, too", also=("residual",)),
    Variant("heads, too", also=("heads",)),
    Variant("whole branches, too", also=("block",)),
)


@contextmanager
def nothing() -> Iterator[None]:
    """No change."""
    yield


def plain(subject: Subject, seed: int) -> Batches:
    """Calibration images drawn from all training images alike."""
    everything = Subject(subject.spec, subject.label, subject.data, 10**9, None).calibration(seed)
    count = sum(len(x) for x, _ in everything)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: subject.images]
    images, labels = (torch.cat([batch[i] for batch in everything])[drawn] for i in (0, 1))
    return list(zip(images.split(64), labels.split(64), strict=True))


def build(subject: Subject, how: Variant, target: float, seed: int) -> Any:
    """The pruned model."""
    batches = plain(subject, seed) if how.plain_draw else subject.calibration(seed)
    kinds = [*DEFAULT_KINDS, *how.also]
    source = vitprune.rotate(subject.origin, subject.graph, batches, kinds) if how.rotates else subject.origin
    scores = vitprune.score(subject.graph, source, how.score, seed, batches, kinds=kinds)
    plan = vitprune.allocate(subject.graph, scores, f"macs={target}", scope=how.scope, kinds=kinds)  # type: ignore[arg-type]
    small = vitprune.shrink(source, subject.graph, plan)
    with (how.patched or nothing)():
        vitprune.refit(source, small, subject.graph, plan, batches)
    return small


def main() -> None:
    """Measures every variant at every target and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.25], help="shares of the MACs")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject = Subject.of(given)

    def predicted(model: Any) -> Tensor:
        module = getattr(model, "model", model)
        with torch.no_grad(), evaluating(module):
            return torch.cat([logits(module(images)) for images, _ in subject.test]).double()

    labels, dense = torch.cat([y for _, y in subject.test]), predicted(subject.origin)
    rows: list[dict[str, Any]] = []
    for how in VARIANTS:
        for target in given.targets:
            found = predicted(build(subject, how, target, given.seed))
            top1 = float((found.argmax(1) == labels).double().mean())
            same = float((found.argmax(1) == dense.argmax(1)).double().mean())
            gap = float(F.kl_div(found.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"))
            rows.append({"variant": how.name, "target": target, "top1": top1, "agreement": same, "divergence": gap})
            print(
                f"{how.name} {target}: {100 * top1:.2f} %, {100 * same:.2f} % alike, divergence {gap:.4f}", flush=True
            )
    top1 = float((dense.argmax(1) == labels).double().mean())
    shown = []
    for row in rows:
        shares = (f"{100 * row[name]:.2f}" for name in ("top1", "agreement"))
        shown.append([row["variant"], f"{row['target']:.0%}", *shares, f"{row['divergence']:.4f}"])
    head = ["changed", "MACs", "top-1 %", "predictions like the dense model's, %", "divergence from them, nats"]
    about = setting(given.threads, given.seed) | subject.describe(top1)
    write(given.out, f"what-helps-{subject.label}", f"{subject.label}: what helps", [table(head, shown)], rows, about)


if __name__ == "__main__":
    main()
