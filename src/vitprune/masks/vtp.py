"""Vision Transformer Pruning: real-valued gates, an L1 penalty, one threshold at the end."""

from __future__ import annotations

from typing import Any

from vitprune.allocate import Target
from vitprune.masks.cost import Pressure
from vitprune.masks.settings import MaskSettings
from vitprune.masks.vectors import Sharing
from vitprune.recover import TrainSettings

L1 = 1e-4
KINDS = ("residual", "v", "mlp")


def vtp(
    training: TrainSettings,
    *,
    rate: float | None = None,
    target: Target | None = None,
    l1: float = L1,
    kinds: tuple[str, ...] | None = None,
    sharing: Sharing = "residual",
    closings: int = 1,
    **more: Any,
) -> MaskSettings:
    """Settings of `train_masks` for VTP: sparse training, a threshold, hard removal, fine-tuning by the same settings.

    rate: share of all gates to close, ranked together; target: as many as it needs, instead. kinds: "residual" has
    gates before qkv and fc1, "v" after attention, "mlp" before fc2; "heads" and "block" may be added. sharing: "inputs"
    gives every layer its own gates before qkv and fc1, as in the paper, where the columns that are closed in some
    layers only are picked out of the activations; here they stay as zeros, and are reported. "residual" shares one
    vector between all layers, and all that it closes is removed. closings: thresholds, the last one after the training
    under gates as in the paper, the others at equal distances within it; what they close stays closed.

    Source: arXiv 2104.08500: X* = X diag(a), loss + 1e-4 |a|_1. Deviations: gates start at 1 and may take any sign;
    every head keeps as many dims, of its own.
    """
    pressure = Pressure(rate=rate, target=target, l1=l1, closings=closings)
    given: dict[str, Any] = {"search": training, "finetune": training, "mask_lr": training.lr} | more
    return MaskSettings(pressure, kinds=kinds or KINDS, sharing=sharing, relaxation="scale", **given)
