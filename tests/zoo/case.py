"""The value that names one test model, and the two functions that prepare it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from packaging.requirements import Requirement
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Case", "images", "logits", "randomise_", "register"]

CASES: dict[str, Case] = {}
LEFT_OUT: dict[str, Case] = {}
# what older versions, within the bounds of pyproject.toml, cannot build or get wrong (GC ViT mixes its images)
NEEDS = {
    "hf/swin/fused": "transformers>=5.9",
    "hf/segformer/fused": "transformers>=5.9",
    "timm/gcvit": "timm>=1.0.31",
    "timm/eva_gqa": "timm>=1.0.30",
    "timm/eva_qk_norm": "timm>=1.0.30",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model of the matrix, small and with random weights.

    name: "library/model/attention", attention being "fused" (scaled_dot_product_attention), "eager", or absent
        where the model has only one path.
    family: what the row of the published table is called, e.g. "ViT".
    build: returns a new model in eval mode; needs no network; the weights are random and not yet randomised.
    example: batch size -> positional arguments of the model, the same values at each call.
    out: result of the forward -> the tensor to compare, batch in dim 0.
    listed: True for the models that must pass, False for those beyond the list.
    notes: what is peculiar about the model.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    example: Callable[[int], tuple[Any, ...]]
    out: Callable[[Any], Tensor]
    listed: bool = True
    notes: str = ""

    def model(self, seed: int = 0) -> nn.Module:
        """Returns a new model whose parameters and statistics are randomised; see `randomise_`."""
        return randomise_(self.build(), seed, self.example(8))


def register(case: Case) -> None:
    """Adds `case` to `CASES`, or to `LEFT_OUT` where its library is too old. Raises ValueError if the name is taken."""
    if case.name in CASES:
        raise ValueError(f"case names must be unique, but {case.name!r} is registered twice")
    short = case.name.rpartition("/")[0]
    wanted = Requirement(NEEDS[case.name]) if case.name in NEEDS else Requirement(NEEDS.get(short, "torch"))
    fits = wanted.specifier.contains(version(wanted.name), prereleases=True)
    (CASES if fits else LEFT_OUT)[case.name] = case


def images(size: int, channels: int = 3, seed: int = 0) -> Callable[[int], tuple[Any, ...]]:
    """Returns batch -> (pixels,), pixels of shape (batch, channels, size, size), standard normal, seeded.

    Image i is the same at every batch size up to 8.
    """

    def example(batch: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(max(batch, 8), channels, size, size, generator=generator)[:batch],)

    return example


def logits(result: Any) -> Tensor:
    """Returns the tensor itself, or the `logits` field of a transformers output."""
    tensor: Tensor = result if isinstance(result, Tensor) else result.logits
    return tensor


_GAMMA_WORDS = ("gamma", "lambda", ".ls", "layer_scale", "layerscale", "res_scale")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() or "affine" in type(module).__name__.lower()


def randomise_(model: nn.Module, seed: int = 0, example: tuple[Any, ...] | None = None) -> nn.Module:
    """Fills every parameter and every batch-norm statistic of `model` with values that hide no error.

    Norm weights are 1 +- 0.3, layer scales 0.5 to 1, biases and tables (class token, position embedding, relative
    position bias) normal with standard deviation 0.3, matrices normal with variance 1 / fan-in. Nothing is zero and
    activations stay of order 1. Buffers that are not batch-norm statistics are structure (rotary tables, masks,
    indices) and stay. Batch-norm statistics are random, or, with an `example` (arguments of the model), those of its
    forward times 0.7 to 1.3, without which a deep convolutional stem forgets its input. Returns `model`.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(tensor.shape, generator=generator)

    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{path}.{name}".lower()
                one = parameter.numel() == 1 or name == "temperature"
                if one or (_is_norm(module) and name in ("weight", "alpha")):
                    value = uniform(parameter, 0.7, 1.3)
                elif any(word in full for word in _GAMMA_WORDS) and name != "bias":
                    value = uniform(parameter, 0.5, 1.0)
                elif name == "logit_scale":
                    value = uniform(parameter, 1.5, 2.5)
                elif name == "weight" and parameter.ndim >= 2 and not isinstance(module, nn.Embedding):
                    value = normal(parameter) * parameter[0].numel() ** -0.5
                elif name.endswith("_weight") and parameter.ndim == 2:
                    value = normal(parameter) * parameter.shape[1] ** -0.5
                else:
                    value = 0.3 * normal(parameter)
                parameter.copy_(value)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * normal(module.running_mean))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
    if example is not None:
        _calibrate_(model, example, generator)
    return model


def _calibrate_(model: nn.Module, example: tuple[Any, ...], generator: torch.Generator) -> None:
    """Sets the statistics of each batch norm near those of its input in one forward, and not equal to them."""

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
        rows = args[0].transpose(0, 1).flatten(1)
        deviation = rows.std(dim=1).clamp(min=0.3 * rows.std().item())
        shift, stretch = torch.rand(2, len(deviation), generator=generator)
        module.running_mean.copy_(rows.mean(dim=1) + deviation * (shift - 0.5))
        module.running_var.copy_((deviation * (0.7 + 0.6 * stretch)) ** 2)

    handles = [m.register_forward_pre_hook(see) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        with torch.no_grad():
            if handles:
                model(*example)
    finally:
        for handle in handles:
            handle.remove()
    model.train().eval()  # a LeViT keeps the attention bias of its last eval forward until the mode changes
