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
