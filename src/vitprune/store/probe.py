"""A model's answer to one fixed input, to tell at load whether it is still the model that was saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.errors import StoreError
from vitprune.models.loaded import logits
from vitprune.modes import evaluating

TOLERANCE = 1e-3  # of the largest absolute output, float32 on another CPU or GPU; seen: below 1e-5
HALF_TOLERANCE = 5e-2


def probe_input(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float32 of that shape, uniform with mean 0 and variance 1, by integer arithmetic: the same everywhere, for ever.

    Source: the splitmix64 mixing function (Steele et al., OOPSLA 2014), on seed and position.
    """
    z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64((seed + 1) * 0x9E3779B9)
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return torch.from_numpy(((unit - np.float32(0.5)) * np.float32(12**0.5)).reshape(shape))


def answer(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits in eval mode, as float32 on the CPU; mode and weights stay as they are."""
    first = next(model.parameters())
    with torch.no_grad(), evaluating(model):
        return logits(model(inputs.to(first.device, first.dtype))).float().cpu()


def save_probe(path: Path, model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> None:
    """Writes the model's answer to `probe_input(shape, seed)` and the recipe of that input.

    Raises StoreError when the answer is not finite (such a model is not worth keeping), or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    expected = answer(model, probe_input(shape, seed))
    if not bool(torch.isfinite(expected).all()):
        raise StoreError("the model's output is not finite; it is not saved (a lower learning rate may help)")
    recipe = {"recipe": "splitmix64", "seed": str(seed), "shape": ",".join(map(str, shape))}
    try:
        save_file({"expected": expected.contiguous()}, path, metadata=recipe)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def check_probe(path: Path, model: nn.Module) -> None:
    """Pass when the model answers as the saved one did. Raises StoreError with the difference otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            recipe = file.metadata() or {}
            expected = file.get_tensor("expected").float()
        shape = tuple(int(n) for n in recipe["shape"].split(","))
        seed = int(recipe["seed"])
        if recipe["recipe"] != "splitmix64" or not 1 <= len(shape) <= 6 or not 1 <= np.prod(shape) <= 2**28:
            raise ValueError(f"recipe {recipe}")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is no probe that vitprune wrote: {error}") from error
    try:
        actual = answer(model, probe_input(shape, seed))
    except RuntimeError as error:
        raise StoreError(f"{path}: the model does not run on the probe of shape {list(shape)}: {error}") from error
    if actual.shape != expected.shape:
        raise StoreError(f"{path}: output is {list(actual.shape)}, the saved model gave {list(expected.shape)}")
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    error_ = float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error_ <= (HALF_TOLERANCE if half else TOLERANCE):  # also catches nan
        raise StoreError(
            f"{path}: outputs differ from those of the saved model by {error_:.2g} of the largest; the folder was "
            "edited, or the model's library computes something else now (see versions in plan.json)"
        )
