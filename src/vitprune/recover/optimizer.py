"""The optimizers with the usual parameter groups, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vitprune.recover.settings import TrainError, TrainSettings

MUON_MOMENTUM = 0.95
VECTOR_SHARE = 0.2  # Muon: learning rate of biases and norms, which AdamW trains, as a share of the matrices' rate


def make_optimizer(model: nn.Module, settings: TrainSettings, *, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters: no decay on biases and norms, rates falling layer by layer.

    "adamw": arXiv 1711.05101. "muon": orthogonalised momentum for every tensor of two or more dimensions, AdamW for
    vectors (K. Jordan, 2024), with updates of AdamW's size (arXiv 2502.16982); timm's implementation.

    Raises TrainError when timm has no Muon, or when layer decay finds no layers.
    """
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999), fused=fused)
    try:
        from timm.optim import Muon
    except ImportError as error:
        raise TrainError("optimizer muon needs a timm that has it; upgrade timm, or use adamw") from error
    made: torch.optim.Optimizer = Muon(
        groups, lr=settings.lr, momentum=MUON_MOMENTUM, nesterov=True, fallback_lr_scale=VECTOR_SHARE
    )
    return made


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """One group per (layer, weight decay): its "params", "weight_decay" and "lr_scale"."""
    skip: Any = getattr(model, "no_weight_decay", tuple)()
    layers = _layers(model) if settings.layer_decay < 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in skip else settings.weight_decay
            layer = layers.get(name, last)
            scale = settings.layer_decay ** (last - layer)
            empty: dict[str, Any] = {"params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((layer, decay), empty)["params"].append(parameter)
    return list(groups.values())


def _layers(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layer: 0 before the repeated blocks, then one per block; what comes after is left out.

    The blocks are the elements of the list of like modules that holds the most parameters.
    """
    blocks = block_list(model)
    if blocks is None:
        raise TrainError("layer decay needs a model with a list of like blocks, but this one has none; set it to 1")
    found: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if name.startswith(f"{blocks}."):
            found[name] = 1 + int(name.removeprefix(f"{blocks}.").partition(".")[0])
        elif not any(layer > 0 for layer in found.values()):
            found[name] = 0
    return found | {"": len(list(model.get_submodule(blocks).children())) + 1}


def block_list(model: nn.Module) -> str | None:
    """The name of the list of like modules that holds the most parameters, or None."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len({type(m) for m in module}) == 1
    }
    return max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()), default=None)


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
    """Writes `rate`, times a group's own factor, into every group but those of `add_groups_`."""
    for group in optimizer.param_groups:
        group["lr"] = group["own_lr"] if "own_lr" in group else rate * group.get("lr_scale", 1.0)


def add_groups_(
    optimizer: torch.optim.Optimizer, groups: Mapping[str, tuple[Sequence[nn.Parameter], float, float]]
) -> None:
    """Adds a hook's parameters, name -> (parameters, learning rate, weight decay); the rate follows no schedule."""
    for parameters, rate, decay in groups.values():
        own = {"params": list(parameters), "weight_decay": decay, "lr": rate, "own_lr": rate}
        muon = {"fallback_lr_scale": 1.0} if "fallback_lr_scale" in optimizer.defaults else {}
        optimizer.add_param_group(own | muon)
