"""Where a layer's output is added to something that was there before it, such as the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from vitprune.calibrate import Replay, Site
from vitprune.trace.capture import op_name
from vitprune.trace.marks import MARK

PASSED = frozenset(["alias", "clone", "contiguous", "detach", "dropout", "to", MARK])  # that leave values as they are


@dataclass(frozen=True, slots=True)
class Joined:
    """The sum that a layer's output enters."""

    other: str  # node of the other summand
    scale: str | None  # name of the parameter that multiplies the output on its way, one number per channel


def joined(replay: Replay, site: Site) -> Joined | None:
    """The sum that the layer's output enters, at most dropout and a layer scale between; None where there is none.

    The other summand is there before the layer runs.
    """
    node, scale = replay.nodes[replay.at[site.node]], None
    channels = node.meta["val"].shape[site.channel_dim]
    while len(node.users) == 1:
        (user,) = node.users
        op = op_name(user) if user.op == "call_function" else ""
        operands = [a for a in user.args[:2] if isinstance(a, Node)]
        others = [a for a in operands if a is not node]
        if op in PASSED:
            node = user
        elif op in ("mul", "mul_") and len(others) == 1 and scale is None:
            scale = replay.captured.tensors.get(others[0].name)
            if scale not in replay.captured.parameters or others[0].meta["val"].numel() != channels:
                return None
            node = user
        elif op in ("add", "add_") and len(others) == 1 and not user.kwargs:
            (other,) = others
            same = other.meta["val"].shape == node.meta["val"].shape == user.meta["val"].shape
            return Joined(other.name, scale) if same and replay.at[other.name] < replay.at[site.node] else None
        else:
            return None
    return None
