"""Where a model's linear layers read and give."""

from __future__ import annotations

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

    @property
    def channel_dim(self) -> int:
        """Dim of the input and the output that holds the channels."""
        return 1 if self.channels_first else -1


def sites(captured: Captured) -> dict[str, list[Site]]:
    """Weight name -> the operators that it is read by, in order, for linear layers and pointwise convolutions."""
    found: dict[str, list[Site]] = {}
    for node in captured.nodes:
        if node.op != "call_function":
            continue
        op = op_name(node)
        if op != "linear" and not (op in CONVOLUTIONS and _pointwise(node)):
            continue
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        if isinstance(weight, Node) and (name := captured.tensors.get(weight.name)) in captured.parameters:
            own = captured.tensors.get(bias.name) if isinstance(bias, Node) else None
            found.setdefault(str(name), []).append(
                Site(node.name, str(name), own if own in captured.parameters else None, op != "linear")
            )
    return found


def _pointwise(node: Node) -> bool:
    weight = node.args[1]
    shape = weight.meta["val"].shape if isinstance(weight, Node) else ()
    groups = node.args[6] if len(node.args) > 6 else 1
    strides = node.args[3] if len(node.args) > 3 else (1,)
    plain = isinstance(strides, (list, tuple)) and all(s == 1 for s in strides)
    return bool(len(shape) > 2 and all(s == 1 for s in shape[2:]) and groups == 1 and plain)
