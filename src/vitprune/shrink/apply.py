"""A plan carried out: a smaller module that runs the same code, checked against the masked dense one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Node

from vitprune.errors import ModelError, OracleError
from vitprune.plan import Plan
from vitprune.shrink.attributes import patch_, restore_, size_map
from vitprune.shrink.emit import reemit
from vitprune.shrink.keep import Keep, keep_from
from vitprune.shrink.literals import CREATED, SIZED, SPLITS, Literal, Ragged, literals
from vitprune.shrink.oracle import difference
from vitprune.shrink.remove import remove_branches_
from vitprune.shrink.select import cut_copy
from vitprune.shrink.signature import CannotEmit
from vitprune.shrink.verify import as_predicted, by_module
from vitprune.trace.capture import CaptureError, capture, module_path, op_name
from vitprune.trace.graph import Graph
from vitprune.trace.marks import composite

TOLERANCE = 1e-4
SIZING = SIZED | CREATED | SPLITS | {"scaled_dot_product_attention", "unflatten", "slice", "repeat", "tile"}


class Affected:
    """A module whose own operators have literals that must change."""

    def __init__(self) -> None:
        self.changes: list[Literal] = []
        self.certain = False  # its source cannot give the new literals


def _affected(model: nn.Module, keep: Keep) -> dict[str, Affected]:
    out: dict[str, Affected] = {}
    for node in keep.graph.detail.captured.nodes:
        if node.op != "call_function":
            continue
        path = module_path(node)
        try:
            changes = literals(keep, node)
            ragged = _makes_ragged(keep, node)
        except Ragged:
            changes, ragged = [], True
        if not changes and not ragged:
            continue
        module = model.get_submodule(path)
        if op_name(node) in ("layer_norm", "rms_norm", "conv1d", "conv2d", "conv3d") and not composite(module):
            continue  # torch's own layer, whose attributes follow its weight
        entry = out.setdefault(path, Affected())
        entry.changes += changes
        entry.certain |= ragged or any(c.position == "scale" for c in changes)
    return out


def _within(path: str, modules: set[str]) -> bool:
    return any(path == m or path.startswith(f"{m}.") for m in modules)


def _owners_of_cut(model: nn.Module, keep: Keep) -> set[str]:
    """Modules that hold a buffer of which positions go, such as a rotary table."""
    names = [name for name, _ in model.named_buffers()]
    owners = {n.rpartition(".")[0] for n in names if any(k is not None for k in keep.tensor(n))}
    return {p for p in owners if composite(model.get_submodule(p))}


def _size_ratios(model: nn.Module, small: nn.Module, keep: Keep, path: str) -> dict[int, int]:
    """Old size -> new size for the buffers of a module, and for twice and four times their size (rotary dims)."""
    out: dict[int, int] = {}
    for name, old in model.get_submodule(path).named_buffers(recurse=False):
        new = getattr(small.get_submodule(path), name)
        for a, b in zip(old.shape, new.shape, strict=True):
            for times in (4, 2, 1):
                if a != b:
                    out[a * times] = b * times
    return out


def _exposed(model: nn.Module, keep: Keep) -> set[str]:
    """Composite modules that compute sizes of their own on tensors of which some change."""
    changing: set[str] = set()
    sizing: set[str] = set()
    for node in keep.graph.detail.captured.nodes:
        if node.op != "call_function":
            continue
        path = module_path(node)
        value = keep.value(node.name)
        if value is not None and any(keep.mask(value, d) is not None for d in range(len(value.shape))):
            changing |= {path, path.rpartition(".")[0]}
        if op_name(node) in SIZING:
            sizing.add(path)
    return {p for p in changing & sizing if composite(model.get_submodule(p))}


def _makes_ragged(keep: Keep, node: Node) -> bool:
    value = keep.value(node.name)
    return value is not None and any(s is None for s in keep.shape(value))


def shrink(
    model: nn.Module,
    graph: Graph,
    plan: Plan,
    *,
    check: bool = True,
    example: tuple[tuple[Any, ...], Mapping[str, Any]] | tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """A new, smaller module of the same class as `model`, with the units that `plan` keeps.

    graph: the trace of this very model. example: the positional arguments it was traced with (any values; batch 2).
    check: compare the outputs with those of `model` with the same units zeroed, on `example`.
    `model` itself is not changed.

    Raises OracleError if the outputs differ, ModelError if the module cannot be rewritten.
    """
    keep = keep_from(graph, plan)
    args, kwargs = tuple(example or ()), dict(example_kwargs or {})
    small = cut_copy(model, keep)
    gone = remove_branches_(small, keep)
    _rewrite(model, small, keep, gone, args, kwargs)
    if check:
        if not args and not kwargs:
            raise ModelError("the check needs an example: pass the arguments that the model was traced with.")
        predicted, counted = graph.cost(plan.sizes())[1], sum(p.numel() for p in small.parameters())
        if predicted != counted:
            raise OracleError(
                f"the shrunk {type(model).__name__} has {counted} parameters where the plan predicts {predicted}: two "
                "groups own the same units, or several branches share a module. Nothing was written. Leave one of them "
                "out with --protect (vitprune inspect lists the groups)."
            )
        gap = difference(model, small, keep, args, kwargs)
        if not gap <= tolerance:
            raise OracleError(
                f"the shrunk {type(model).__name__} differs from the masked dense one by {gap:.1e} (relative; allowed "
                f"{tolerance:.0e}). Nothing was written. Leave out a kind with --kinds to find which one is at fault."
            )
    return small


def _rewrite(
    model: nn.Module, small: nn.Module, keep: Keep, gone: set[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Make every forward of `small` fit its tensors."""
    affected = {p: a for p, a in _affected(model, keep).items() if not _within(p, gone)}
    exposed = {p for p in _exposed(model, keep) if not _within(p, gone)}
    patched: dict[str, dict[str, Any]] = {}
    done: set[str] = set()
    for path, entry in affected.items():
        if entry.certain:
            _replace(model, small, keep, path, done)
        patched[path] = patch_(small.get_submodule(path), size_map(entry.changes))
    for path in [p for p in _owners_of_cut(model, keep) - done if not _within(p, gone)]:
        sizes = _size_ratios(model, small, keep, path)
        patched.setdefault(path, {}).update(patch_(small.get_submodule(path), sizes))
    tried: list[str] = []
    dense = by_module(keep.graph.detail.captured)
    while (set(affected) | exposed) - done:
        try:
            shrunk = by_module(capture(small, args, kwargs))
        except CaptureError as error:
            at = next((p for p in reversed(error.modules) if p not in done and p in dense), None)
            if at is not None and at not in affected and at not in exposed:
                # it has nothing to get wrong: a module that ran before must have handed on a wrong shape
                calls = keep.graph.detail.captured.calls
                at = next((p for p in dense if p in affected and p not in done and calls.of(p)), at)
            if at is None:
                if not _narrow(small, patched, tried):
                    if "" in done:
                        raise
                    restore_(small, patched.get("", {}))
                    _replace(model, small, keep, "", done)
                continue
            kind = type(small.get_submodule(at))
            for path in [p for p in (set(affected) | exposed | {at}) - done if type(small.get_submodule(p)) is kind]:
                restore_(small.get_submodule(path), patched.get(path, {}))
                _replace(model, small, keep, path, done)
            continue
        for path, nodes in dense.items():
            if _within(path, done | gone):
                continue
            if not as_predicted(keep, nodes, shrunk.get(path, [])):
                restore_(small.get_submodule(path), patched.get(path, {}))
                _replace(model, small, keep, path, done)
        return


def _narrow(small: nn.Module, patched: dict[str, dict[str, Any]], tried: list[str]) -> bool:
    """The root failed with all its size attributes changed: try them one at a time. False when none is left."""
    old = patched.get("", {})
    names = [n for n in old if n not in tried]
    if not names or (len(old) == 1 and not tried):
        return False
    current = {n: getattr(small, n) for n in old}
    if not tried:  # remember the new values while the root still has them all
        patched["#new"] = current
    restore_(small, old)
    tried.append(names[0])
    setattr(small, names[0], patched["#new"][names[0]])
    return True


def _replace(model: nn.Module, small: nn.Module, keep: Keep, path: str, done: set[str]) -> None:
    try:
        reemit(model, small, keep, path)
    except CannotEmit as reason:
        raise ModelError(
            f"the forward of {path or 'the model'} ({type(model.get_submodule(path)).__name__}) cannot be rewritten "
            f"for this plan: {reason}. Keep its groups out with --kinds or --protect, or keep the q/k and v dims equal."
        ) from reason
    done.add(path)
