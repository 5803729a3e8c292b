"""Where a model's linear layers read and give."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch.fx import Node

from vitprune.trace.capture import Captured, op_name

CONVOLUTIONS = frozenset(["conv1d", "conv2d", "conv3d"])


@dataclass(frozen=True, slots=True)
class Site:
    """One linear operator."""

    node: str
    weight: str  # name of the parameter, (out, in) or, for a pointwise convolution, (out, in, 1, ...)
    bias: str | None  # name of the parameter (out,); None where there is none, or it is computed
    channels_first: bool  # the input is (B, in, ...) and not (..., in)
    start: int = 0  # row of the parameter at which the operator's weight begins, where it is but a part of it

    @property
    def channel_dim(self) -> int:
        """Dim of the input and the output that holds the channels."""
        return 1 if self.channels_first else -1


def sites(captured: Captured, *, parts: bool = False) -> dict[str, list[Site]]:
    """Weight name -> the operators that it is read by, in order, for linear layers and pointwise convolutions.

    parts: also operators that are given some rows of a parameter (torch's multi-head attention).
    """
    found: dict[str, list[Site]] = {}
    for node in captured.nodes:
        if node.op != "call_function":
            continue
        op = op_name(node)
        if op != "linear" and not (op in CONVOLUTIONS and _pointwise(node)):
            continue
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        source = _rows(weight) if isinstance(weight, Node) else None
        if source is None or (source[0] is not weight and not parts):
            continue
        name = captured.tensors.get(source[0].name)
        if name in captured.parameters:
            own = captured.tensors.get(bias.name) if isinstance(bias, Node) else None
            own = own if own in captured.parameters else None
            found.setdefault(str(name), []).append(Site(node.name, str(name), own, op != "linear", source[1]))
    return found


def _rows(weight: Node) -> tuple[Node, int] | None:
    """The tensor whose rows these are, and which is the first; None for anything else than a stretch of rows."""
    if weight.op == "placeholder":
        return weight, 0
    whole = weight.args[0] if weight.args else None
    if not isinstance(whole, Node):
        return None
    if weight.target is operator.getitem and op_name(whole) in ("chunk", "split", "split_with_sizes"):
        dim = whole.args[2] if len(whole.args) > 2 else whole.kwargs.get("dim", 0)
        source, number = whole.args[0], weight.args[1]
        if dim == 0 and isinstance(source, Node) and source.op == "placeholder" and isinstance(number, int):
            return source, sum(int(part.shape[0]) for part in whole.meta["val"][:number])
    if op_name(weight) == "slice" and whole.op == "placeholder":
        dim, start = (weight.args[i] if len(weight.args) > i else 0 for i in (1, 2))
        step = weight.args[4] if len(weight.args) > 4 else 1
        if dim == 0 and step == 1 and (start is None or isinstance(start, int)):
            return whole, start or 0
    return None


def _pointwise(node: Node) -> bool:
    weight = node.args[1]
    shape = weight.meta["val"].shape if isinstance(weight, Node) else ()
    groups = node.args[6] if len(node.args) > 6 else 1
    strides = node.args[3] if len(node.args) > 3 else (1,)
    plain = isinstance(strides, (list, tuple)) and all(s == 1 for s in strides)
    return bool(len(shape) > 2 and all(s == 1 for s in shape[2:]) and groups == 1 and plain)
