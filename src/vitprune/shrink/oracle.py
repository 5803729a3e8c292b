"""The oracle: the shrunk model equals the dense one with the same units zeroed.

Zeroing is done on parameters alone; the dense model's own code then runs. Norms take their statistics over the kept
positions: a position counts as removed where the norm's weight is zero or, without a weight, where the input is zero
throughout. This knows nothing of the trace but which parameter positions go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from vitprune.errors import OracleError
from vitprune.modes import evaluating
from vitprune.shrink.keep import Keep


def _moments(x: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the last dim, of the kept positions only."""
    count = kept.sum()
    mean = (x * kept).sum(-1, keepdim=True) / count
    var = (((x - mean) * kept) ** 2).sum(-1, keepdim=True) / count
    return mean, var


def _kept(x: torch.Tensor, weight: torch.Tensor | None, dim: int = -1) -> torch.Tensor:
    if weight is not None:
        return (weight != 0).to(x.dtype)
    return (x != 0).movedim(dim, 0).flatten(1).any(dim=1).to(x.dtype)


def _layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if len(shape) != 1:
        return F.layer_norm(x, shape, weight, bias, eps)
    kept = _kept(x, weight)
    if bool(kept.all()) or not bool(kept.any()):
        return F.layer_norm(x, shape, weight, bias, eps)
    mean, var = _moments(x, kept)
    out = (x - mean) * torch.rsqrt(var + eps) * kept
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    if len(shape) != 1:
        return F.rms_norm(x, shape, weight, eps)
    kept = _kept(x, weight)
    if not bool(kept.any()):
        return F.rms_norm(x, shape, weight, eps)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = x * torch.rsqrt(((x * kept) ** 2).sum(-1, keepdim=True) / kept.sum() + eps)
    return out if weight is None else out * weight


def _group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    if groups != 1:
        return F.group_norm(x, groups, weight, bias, eps)
    line = [1, -1] + [1] * (x.ndim - 2)
    kept = _kept(x, weight, 1).view(line)
    if not bool(kept.any()):
        return F.group_norm(x, groups, weight, bias, eps)
    dims = tuple(range(1, x.ndim))
    count = kept.sum() * x[0, 0].numel()
    mean = (x * kept).sum(dims, keepdim=True) / count
    var = (((x - mean) * kept) ** 2).sum(dims, keepdim=True) / count
    out = (x - mean) * torch.rsqrt(var + eps)
    out = out if weight is None else out * weight.view(line)
    return out if bias is None else out + bias.view(line)


def _mean(x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim or [])
    if len(dims) != 1 or not x.is_floating_point():
        return x.mean(**kwargs) if dim is None else x.mean(dim, keepdim, **kwargs)
    kept = _kept(x, None, dims[0])
    key = (dims[0] % x.ndim, tuple(x.shape))
    if bool(kept.all()) and key in _seen and _is_second_moment(x, key[0], *_seen[key]):
        kept = _seen.pop(key)[0]
    if bool(kept.all()) or not bool(kept.any()):
        return x.mean(dim, keepdim, **kwargs)
    line = [-1 if d == key[0] else 1 for d in range(x.ndim)]
    mean = (x * kept.view(line)).sum(dims, keepdim=True) / kept.sum()
    _seen[key] = (kept, mean)
    return mean if keepdim else mean.squeeze(key[0])


def _is_second_moment(x: torch.Tensor, dim: int, kept: torch.Tensor, mean: torch.Tensor) -> bool:
    """Whether `x` is (y - mean)^2 of a hand-written norm: positions that are zero in y hold mean^2 by now."""
    gone = x.index_select(dim, torch.nonzero(kept == 0).flatten())
    return torch.allclose(gone, (mean**2).expand_as(gone), rtol=1e-4, atol=1e-12)


# over an axis of such a shape, the kept positions and the mean that was taken last
_seen: dict[tuple[int, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}


def _softmax(x: Any, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
    dim = -1 if dim is None else dim
    rows = x.movedim(dim, -1)
    if x.ndim < 3:
        return F.softmax(x, dim)
    gone = (rows == 0).all(dim=-2, keepdim=True).all(dim=0, keepdim=True)  # per head, if there are heads
    gone = gone & ~gone.all(dim=-1, keepdim=True)
    return F.softmax(rows.masked_fill(gone, -torch.inf), -1).movedim(-1, dim)


def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Any:
    if attn_mask is not None or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return _softmax(scores, -1) @ v


class KeptStatistics(TorchFunctionMode):
    """While active, norms, means and softmaxes over partly zeroed axes see the kept positions only."""

    RULES: Mapping[Any, Callable[..., Any]] = {
        F.layer_norm: _layer_norm,
        torch.layer_norm: lambda x, shape, weight=None, bias=None, eps=1e-5, *_: _layer_norm(
            x, shape, weight, bias, eps
        ),
        F.rms_norm: _rms_norm,
        torch.rms_norm: _rms_norm,
        F.group_norm: _group_norm,
        torch.Tensor.mean: _mean,
        torch.mean: _mean,
        F.scaled_dot_product_attention: _attention,
        F.softmax: lambda x, dim=None, _stacklevel=3, dtype=None: _softmax(x, dim),
        torch.softmax: _softmax,
        torch.Tensor.softmax: _softmax,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, or its rule (torch turns the mode off meanwhile)."""
        rule = self.RULES.get(func, func)
        if rule is func:
            return func(*args, **(kwargs or {}))
        return rule(*args, **(kwargs or {}))


@contextmanager
def masked(model: nn.Module, keep: Keep) -> Iterator[None]:
    """Zero the removed positions of the model's parameters; they come back when the context closes."""
    saved: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    whole: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied one by each name
                for dim, kept in enumerate(keep.tensor(name)):
                    if kept is None:
                        continue
                    gone = np.setdiff1d(np.arange(parameter.shape[dim]), kept, assume_unique=True)
                    index = torch.as_tensor(gone, device=parameter.device)
                    saved.append((parameter, dim, index, parameter.index_select(dim, index)))
                    parameter.index_fill_(dim, index, 0)
            for group in keep.removed_blocks:
                for parameter in model.get_submodule(group.modules[-1]).parameters():
                    whole.append((parameter, parameter.clone()))
                    parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for tensor, old in reversed(whole):
                tensor.copy_(old)
            for tensor, dim, index, old in reversed(saved):
                tensor.index_copy_(dim, index, old)


def tensors_in(result: Any) -> list[torch.Tensor]:
    """All floating-point tensors of a model's result."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        return [t for v in result.values() for t in tensors_in(v)]
    if isinstance(result, (list, tuple)):
        return [t for v in result for t in tensors_in(v)]
    return []


def one_image(args: Any, kwargs: Mapping[str, Any], batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for the first image alone; as they are where some tensor's first axis is not the batch."""
    tensors = [a for a in [*args, *kwargs.values()] if isinstance(a, torch.Tensor)]
    if not all(t.ndim and len(t) == batch for t in tensors):
        return tuple(args), dict(kwargs)

    def first(value: Any) -> Any:
        return value[:1] if isinstance(value, torch.Tensor) else value

    return tuple(first(a) for a in args), {k: first(v) for k, v in kwargs.items()}


def difference(model: nn.Module, small: nn.Module, keep: Keep, args: Any, kwargs: Mapping[str, Any]) -> float:
    """Largest difference of the outputs for one image, relative to the dense ones' largest value."""
    args, kwargs = one_image(args, kwargs, keep.graph.batch)
    with torch.no_grad(), evaluating(model, small):
        got = [t.clone() for t in tensors_in(small(*args, **kwargs))]
        _seen.clear()
        with masked(model, keep), KeptStatistics():
            want = [t.clone() for t in tensors_in(model(*args, **kwargs))]
    if [t.shape for t in got] != [t.shape for t in want]:
        raise OracleError(f"output shapes differ: {[tuple(t.shape) for t in got]} and {[tuple(t.shape) for t in want]}")
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        scale = float(b.abs().max().clamp_min(1e-12))
        gap = float((a - b).abs().max()) / scale
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
