"""Does a module's own source, on the shrunk tensors, run the operators that the plan predicts?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from vitprune.shrink.keep import Keep
from vitprune.shrink.literals import Ragged, literals
from vitprune.trace.capture import Captured, module_path, op_name
from vitprune.trace.marks import MARK

IGNORED = frozenset(["getitem", "_assert_tensor_metadata", MARK])


def by_module(captured: Captured) -> dict[str, list[Node]]:
    """The operators of each module, in order."""
    out: dict[str, list[Node]] = {}
    for node in captured.nodes:
        if node.op == "call_function" and op_name(node) not in IGNORED:
            out.setdefault(module_path(node), []).append(node)
    return out


def _plain(value: Any) -> Any:
    """Literal arguments only, in a comparable form."""
    if isinstance(value, (Node, torch.device)):
        return "tensor"
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _predicted(keep: Keep, node: Node) -> tuple[list[Any], dict[str, Any]]:
    args = [_plain(a) for a in node.args]
    kwargs = {k: _plain(v) for k, v in node.kwargs.items()}
    for change in literals(keep, node):
        if isinstance(change.position, int):
            while len(args) <= change.position:
                args.append(None)
            args[change.position] = _plain(change.new)
        else:
            kwargs[change.position] = _plain(change.new)
    return args, kwargs


def as_predicted(keep: Keep, dense: Sequence[Node], shrunk: Sequence[Node]) -> bool:
    """Whether the shrunk module runs the dense one's operators with the predicted literals and result shapes."""
    if [op_name(n) for n in dense] != [op_name(n) for n in shrunk]:
        return False
    for a, b in zip(dense, shrunk, strict=True):
        try:
            if _predicted(keep, a) != ([_plain(x) for x in b.args], {k: _plain(v) for k, v in b.kwargs.items()}):
                return False
        except Ragged:
            return False
        value, meta = keep.value(a.name), b.meta.get("val")
        if value is not None and isinstance(meta, torch.Tensor) and keep.shape(value) != tuple(meta.shape):
            return False
    return True
