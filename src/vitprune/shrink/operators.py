"""One traced operator as a line of code, with the literals that the plan asks for."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Node

from vitprune.shrink.dynamic import expand_sizes, new_sizes, view_sizes
from vitprune.shrink.literals import CREATED, SIZED, Literal, Ragged, literals
from vitprune.shrink.signature import CannotEmit
from vitprune.shrink.writer import Writer
from vitprune.trace.capture import module_path

VIEWS = frozenset(["view", "reshape", "_unsafe_view", "flatten", "unflatten"])
COUNTED: dict[str, tuple[int, ...]] = {  # operators with arguments that may count images, and where those stand
    "repeat": (1,), "tile": (1,), "arange": (0, 1), "repeat_interleave": (1,), "slice": (2, 3), "narrow": (2, 3),
    "split": (1,), "split_with_sizes": (1,),
}  # fmt: skip


def write(w: Writer, node: Node, name: str) -> None:
    """Add the line that runs the operator of `node`.

    Raises CannotEmit where its result would not be rectangular.
    """
    args = [w.argument(a) for a in node.args]
    kwargs = {k: w.argument(v) for k, v in node.kwargs.items()}
    target = f"torch.ops.{node.target}"
    try:
        changes = literals(w.keep, node)
    except Ragged as error:
        raise CannotEmit(f"unequal parts in {name}") from error
    for change in changes:
        if isinstance(change.position, int):
            args += ["None"] * (change.position + 1 - len(args))
            args[change.position] = repr(change.new)
        else:
            kwargs[change.position] = repr(change.new)
        if isinstance(change.new, list) and not isinstance(change.old, list):
            target = "torch.ops.aten.split_with_sizes.default"
    value = w.keep.value(node.name)
    first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    source = w.keep.value(first.name) if first is not None else None
    if first is not None and value is not None and source is not None and name in VIEWS:
        target = "torch.ops.aten.reshape.default"
        args, kwargs = [args[0], view_sizes(w.keep, w.sizes, args[0], source, value, w.grown(first, node))], {}
    elif first is not None and value is not None and source is not None and name in ("expand", "broadcast_to"):
        args[1] = expand_sizes(w.keep, w.sizes, source, value, w.grown(first, node))
    elif name in (SIZED | CREATED) and value is not None:
        args[0 if name in CREATED else 1] = new_sizes(w.keep, w.sizes, value, w.larger(node) or None)
    elif name in COUNTED:
        _counts(w, node, name, changes, args)
    elif name == "scaled_dot_product_attention":
        args, kwargs = _causal(w, *_dropout(w, args, kwargs))
    elif name == "dropout":
        args[2] = "self.training"
    call = f"{target}({', '.join([*args, *(f'{k}={v}' for k, v in kwargs.items())])})"
    optional = [a for a in args[1:] if a.isidentifier() and a in w.signature.leaves.values()]
    if name == "add" and optional:  # a mask that callers may leave out when they do not trace
        call = f"{args[0]} if {optional[0]} is None else {call}"
    w.env[node.name] = w.say(call)


def _counts(w: Writer, node: Node, name: str, changes: list[Literal], args: list[str]) -> None:
    """Put in the counts of an operator that may follow the batch."""
    larger = w.more.get(node.name)
    for position in COUNTED[name]:
        if position < len(node.args):
            new = next((c.new for c in changes if c.position == position), node.args[position])
            args[position] = _count(w, new, node.args[position], larger.args[position] if larger is not None else None)


def _count(w: Writer, new: Any, dense: Any, larger: Any) -> str:
    """A whole number, or a list of them, that may grow with the batch."""
    if isinstance(new, (list, tuple)) and isinstance(dense, (list, tuple)) and len(new) == len(dense):
        others = larger if isinstance(larger, (list, tuple)) and len(larger) == len(dense) else [None] * len(dense)
        return "[" + ", ".join(_count(w, *t) for t in zip(new, dense, others, strict=True)) + "]"
    if type(new) is int and type(dense) is int and 1 < dense < 2**31:
        return w.sizes.settle(new, dense, larger if type(larger) is int else None, None, False)
    return w.argument(new)


def _dropout(w: Writer, args: list[str], kwargs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Attention dropout in training, where the module has a rate for it that eval mode did not show."""
    rate = None
    for name, child in w.module.named_children():
        used = any(module_path(n) == f"{w.prefix}{name}" for n in w.captured.nodes)
        if isinstance(child, nn.Dropout) and child.p > 0 and not used:
            rate = f"self.{name}.p"
    for key, value in vars(w.module).items():
        if rate is None and "drop" in key and isinstance(value, float) and value > 0:
            rate = f"self.{key}"
    if rate is None:
        return args, kwargs
    args = args + ["None"] * (4 - len(args))
    return [*args[:4], f"{rate} if self.training else 0.0", *args[5:]], kwargs


def _causal(w: Writer, args: list[str], kwargs: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """A mask that was traced but that callers may leave out, because they ask for a causal one by a flag."""
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask", "")
    if mask not in w.signature.names or len(args) > 5 or "is_causal" in kwargs:
        return args, kwargs
    if "is_causal" in w.signature.names:
        flag = "bool(is_causal)"
    elif w.signature.extra and "is_causal" in w.call.kwargs:
        flag = f"bool({w.signature.extra}.get('is_causal'))"
    elif isinstance(getattr(w.module, "is_causal", None), bool):
        flag = "self.is_causal"
    else:
        return args, kwargs
    return args, {**kwargs, "is_causal": f"{mask} is None and {flag}"}
