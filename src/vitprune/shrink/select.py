"""Parameters and buffers cut to the kept positions, in a copy that shares nothing with the original."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from vitprune.shrink.keep import Keep
from vitprune.trace.labels import Array


def cut(tensor: torch.Tensor, kept: tuple[Array | None, ...]) -> torch.Tensor:
    """A copy of `tensor` with the kept positions of every dim (None: all of them)."""
    for dim, index in enumerate(kept):
        if index is not None:
            tensor = tensor.index_select(dim, torch.as_tensor(index, device=tensor.device))
    return tensor.clone() if all(k is None for k in kept) else tensor


def cut_copy(model: nn.Module, keep: Keep) -> nn.Module:
    """A deep copy of `model` with cut tensors; tied tensors stay tied. At no time are there two full copies."""
    names: dict[int, str] = {}
    tensors: dict[int, torch.Tensor] = {}
    known = keep.graph.detail.propagated.tensors
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in every:
        tensors[id(tensor)] = tensor
        if id(tensor) not in names or name in known:
            names[id(tensor)] = name
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for key, tensor in tensors.items():
            data = cut(tensor.detach(), keep.tensor(names[key]))
            memo[key] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    small = copy.deepcopy(model, memo)
    for module in small.modules():
        sync_sizes(module)
    return small


def sync_sizes(module: nn.Module) -> None:
    """Set the size attributes of torch's own layers from their tensors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        weight = None
    if isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and weight is not None:
        per_group = module.in_channels // module.groups
        if module.groups > 1 and per_group == weight.shape[1] == 1:  # depthwise
            multiplier = module.out_channels // module.groups
            module.groups = weight.shape[0] // multiplier
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif hasattr(module, "normalized_shape"):  # torch's norms, and those of libraries that follow them
        shape: Any = module.normalized_shape
        if weight is not None and isinstance(shape, (tuple, list)) and len(weight.shape) == len(shape):
            vars(module)["normalized_shape"] = tuple(weight.shape)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        mean = module.running_mean if module.running_mean is not None else weight
        if mean is not None:
            module.num_features = mean.shape[0]
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding) and weight is not None:
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim = module.out_proj.weight.shape[0]
