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
    """(module path, labels of the normalised positions, RMS norm?) of every module that is a layer norm or RMS norm and no more.

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
        value = graph.detail.propagated.values.get(mine[0].args[0].name)
        fields = value.on(-1) if isinstance(value, Value) else ()
        if not fields:
            continue
        array = fields[-1].array
        line = np.asarray(array[tuple(slice(None) if d == array.ndim - 1 else 0 for d in range(array.ndim))])
        if path and array.size == line.size and len(line) == value.shape[-1] and (line >= 0).all():
            yield path, line, op_name(mine[0]) == "rms_norm"


def kept_forward(module: nn.Module, kept: Tensor, rms: bool) -> Callable[[Tensor], Tensor]:
    """The forward of a norm whose mean and mean square run over the positions where `kept` (size,) is 1.

    The positions that are masked are normalised too, by the same statistics: so a mask can tell what they would do.
    """
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    given: Any = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-5))

    def forward(x: Tensor) -> Tensor:
        """x: (..., size)."""
        dtype = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if dtype in (torch.float16, torch.bfloat16) else x
            eps = torch.finfo(x.dtype).eps if given is None else given
            share = (kept / kept.sum()).to(x.dtype)
            if not rms:
                x = x - (x * share).sum(-1, keepdim=True)
            out = x * torch.rsqrt((x * x * share).sum(-1, keepdim=True) + eps)
            out = out if weight is None else out * weight
            out = out if bias is None else out + bias
        return out if torch.is_autocast_enabled(out.device.type) else out.to(dtype)

    return forward
