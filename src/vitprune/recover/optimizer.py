"""AdamW with the usual parameter groups, and its learning rate at every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vitprune.recover.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings, *, fused: bool = True) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: no decay on biases and norms, learning rate falling layer by layer."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    groups: Any
    if settings.layer_decay < 1:
        groups = param_groups_layer_decay(model, settings.weight_decay, layer_decay=settings.layer_decay)
    else:
        skip: Any = getattr(model, "no_weight_decay", tuple)()
        groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=skip)
    for group in groups:
        group.pop("param_names", None)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999), fused=fused)


def learning_rate(settings: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to `min_lr` times the peak.

    Source: arXiv 1608.03983, without restarts.
    """
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate_(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Writes `rate`, times a group's own factor, into every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
