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

CHUNK = 1 << 16  # numbers that are normalised at a time on one CPU thread
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


def _chunks(size: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of (rows, ...) tensors: on one CPU thread small enough that the passes over one stay in its cache.

    Several threads wait for each other after every operator, which costs more than that saves.
    """
    alone = rows[0].device.type == "cpu" and torch.get_num_threads() == 1 and not torch.compiler.is_compiling()
    count = max(1, CHUNK // size) if alone else max(1, len(rows[0]))
    return zip(*(torch.split(r, count) for r in rows))  # noqa: B905  # torch 2.9 cannot compile strict=True


class _KeptNorm(torch.autograd.Function):
    """A norm by the statistics of some positions, with as little memory as the one it stands for."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor, eps: float, rms: bool
    ) -> Tensor:
        """x: (..., size); weight, bias, share: (size,), share being 1 / n at the n kept positions."""
        flat = x.reshape(-1, len(share))
        out, mean, scale = torch.empty_like(flat), flat.new_zeros(len(flat), 1), flat.new_empty(len(flat), 1)
        for f, o, m, s in _chunks(len(share), flat, out, mean, scale):
            if not rms:
                m.copy_(torch.mv(f, share)[:, None])
            torch.sub(f, m, out=o)
            s.copy_(torch.mv(o * o, share)[:, None]).add_(eps).rsqrt_()
            o.mul_(s)
            if bias is None:
                o.mul_(weight)
            else:
                torch.addcmul(bias, o, weight, out=o)
        ctx.rms, ctx.biased = rms, bias is not None
        ctx.save_for_backward(flat, weight, share, mean, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """With y = (x - mean) scale: dx = scale (g w - share (sum g w + y sum g w y)); the first sum not for RMS.

        torch's own backward has 1 / size in the place of share: r = n / size of its dx goes to the kept positions, and
        (1 - share size) scale g w to all.
        """
        flat, weight, share, mean, scale = ctx.saved_tensors
        size = len(share)
        g = grads[0].reshape(-1, size)
        if ctx.rms:
            dx, dw, db = _rms_backward(g, flat, weight, share, scale)
        else:
            dx, dw, db = torch.ops.aten.native_layer_norm_backward(
                g, flat, [size], mean, scale, weight, weight, [True, True, True]
            )
            kept = share * size
            rest = weight * (1 - kept)
            for d, gs, s in _chunks(size, dx, g, scale):
                d.mul_(kept).addcmul_(gs * s, rest)
        return dx.view(grads[0].shape), dw, db if ctx.biased else None, None, None, None


def _rms_backward(
    g: Tensor, flat: Tensor, weight: Tensor, share: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = torch.empty_like(g), torch.zeros_like(weight)
    for gs, f, d, s in _chunks(len(share), g, flat, dx, scale):
        y = f * s
        gy = gs * y
        dw += gy.sum(0)
        torch.mul(gs, weight, out=d)
        d.addcmul_(y.mul_(torch.mv(gy, weight)[:, None]), share, value=-1).mul_(s)
    return dx, dw, g.sum(0)


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
