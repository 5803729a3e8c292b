"""Norms whose statistics see the kept positions only, as those of the shrunk model will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Ints
from vitprune.shrink.verify import IGNORED
from vitprune.trace.capture import module_path, op_name
from vitprune.trace.graph import Graph
from vitprune.trace.value import Value

CASTS = frozenset(["to", "type_as", "_to_copy", "float"])


def norms_of(graph: Graph) -> Iterator[tuple[str, Ints, bool]]:
    """(module path, labels of the normalised positions, RMS norm?) of every module that is a norm and nothing else.

    The labels are (size,). Norms written out in single operators, and those whose positions differ from head to head,
    are left out: masks that need them do not pass `check_`.
    """
    nodes: dict[str, list[Any]] = {}
    for node in graph.detail.captured.nodes:
        if node.op == "call_function" and op_name(node) not in IGNORED | CASTS:
            nodes.setdefault(module_path(node), []).append(node)
    for path, mine in nodes.items():
        if {op_name(n) for n in mine} not in ({"layer_norm"}, {"rms_norm"}) or len(mine[0].args[1]) != 1:
            continue
        line = _line(graph, mine[0])
        if path and line is not None and len(line) == mine[0].args[1][0] and (line >= 0).all():
            yield path, line, op_name(mine[0]) == "rms_norm"


def _line(graph: Graph, node: Any) -> Ints | None:
    """Labels of the normalised positions: the weight's, else those of the input where all rows have the same."""
    weight = node.args[2] if len(node.args) > 2 else node.kwargs.get("weight")
    held = graph.detail.captured.tensors.get(getattr(weight, "name", ""))
    lines = graph.detail.propagated.tensors.get(held, ())
    if len(lines) == 1 and lines[0] is not None:
        own: Ints = lines[0]
        return own
    value = graph.detail.propagated.values.get(node.args[0].name)
    fields = value.on(-1) if isinstance(value, Value) else ()
    array = fields[-1].array if fields else np.zeros((2, 0))
    return np.asarray(array.ravel()) if array.size == array.shape[-1] else None


class _KeptNorm(torch.autograd.Function):
    """A norm by the statistics of some positions, written out: a fifth of the passes that autograd would take."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor, eps: float, rms: bool
    ) -> Tensor:
        """x: (..., size); weight, bias, share: (size,), share being 1 / n at the n kept positions."""
        y = x if rms else x - torch.mv(x.reshape(-1, len(share)), share).view(*x.shape[:-1], 1)
        square = torch.mv((y * y).reshape(-1, len(share)), share).view(*x.shape[:-1], 1)
        scale = torch.rsqrt(square + eps)
        y = y * scale
        ctx.rms, ctx.biased = rms, bias is not None
        ctx.save_for_backward(y, weight, share, scale)
        return y * weight if bias is None else torch.addcmul(bias, y, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """With y = (x - mean) scale: dx = scale (g w - share (sum g w + y sum g w y)); the first sum not for RMS."""
        y, weight, share, scale = ctx.saved_tensors
        size, lead = len(share), (*y.shape[:-1], 1)
        g = grads[0].reshape(-1, size)
        gy = g * y.reshape(-1, size)
        second = torch.mv(gy, weight).view(lead)
        back = y * second if ctx.rms else torch.addcmul(torch.mv(g, weight).view(lead), y, second)
        dx = torch.addcmul(grads[0] * weight, back, share, value=-1).mul_(scale)
        return dx, gy.sum(0), g.sum(0) if ctx.biased else None, None, None, None


def kept_forward(module: nn.Module, kept: Tensor, rms: bool) -> Callable[[Tensor], Tensor]:
    """The forward of a norm whose mean and mean square run over the positions where `kept` (size,) is 1.

    The positions that are masked are normalised too, by the same statistics: so a mask can tell what they would do.
    Gradients do not reach the masks through the statistics.
    """
    given: Any = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-5))
    ones = torch.ones_like(kept)

    def forward(x: Tensor) -> Tensor:
        """x: (..., size)."""
        dtype, weight, bias = x.dtype, getattr(module, "weight", None), getattr(module, "bias", None)
        autocast = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
            eps = torch.finfo(x.dtype).eps if given is None else float(given)
            share = (kept / kept.sum()).to(x.dtype)
            scale = (ones if weight is None else weight).to(x.dtype)
            out: Tensor = _KeptNorm.apply(x, scale, None if bias is None else bias.to(x.dtype), share, eps, rms)
        return out if autocast else out.to(dtype)

    return forward
