"""Gates that were tried: a masked model must equal the oracle's before it is trained."""

from __future__ import annotations

import random
from collections.abc import Collection
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vitprune.masks.errors import MaskError
from vitprune.masks.gates import KINDS, Gates
from vitprune.masks.settings import MaskSettings
from vitprune.masks.vectors import without
from vitprune.modes import evaluating
from vitprune.plan import GroupPlan, Plan, identity
from vitprune.shrink import keep_from, masked
from vitprune.shrink.oracle import KeptStatistics, tensors_in
from vitprune.trace.graph import Graph

TOLERANCE = 1e-4  # relative, as of the oracle


def on_model(
    model: nn.Module,
    graph: Graph,
    kinds: Collection[str] | None = None,
    *,
    freeze: Collection[str] = (),
    protect: Collection[str] = (),
    **how: Any,
) -> Gates:
    """Gates on `model`, each kind compared first with the oracle under a random plan; arguments are those of `Gates`.

    A kind that fails with one slice per way is masked in all its slices; where that fails too, the groups that fail by
    themselves (norms over them that are written out in single operators) are left out, with the reason in `left`.

    Raises MaskError when a kind that was named, or every kind, has to be left out.
    """
    chosen = without(graph.groups, freeze, KINDS if kinds is None else kinds, protect)
    everywhere: list[str] = []
    good: list[str] = []
    left: dict[str, str] = {}
    for kind in dict.fromkeys(g.kind for g in chosen):
        own = [g.name for g in chosen if g.kind == kind]
        wide, why = _way(model, graph, kind, protect)
        bad = {} if wide is not None else dict.fromkeys(own, why)
        if wide is None and len(own) > 1:
            alone = {name: _way(model, graph, kind, [*protect, *map(escape, set(own) - {name})]) for name in own}
            some = {name: reason for name, (found, reason) in alone.items() if found is None}
            if len(some) < len(own):
                wide, _ = _way(model, graph, kind, [*protect, *map(escape, some)])
                bad = bad if wide is None else some
        left |= bad
        if wide is not None:
            good.append(kind)
            everywhere += [kind] if wide else []
    lost = [k for k in kinds or () if any(g.kind == k for g in chosen) and k not in good]
    if lost or not good:
        name, reason = next(iter(left.items()))
        raise MaskError(
            f"{type(model).__name__} cannot be masked in {', '.join(lost) or 'any kind'}: {name}: {reason}; leave the "
            "kind out, or prune it by scores"
        )
    gates = Gates(model, graph, good, everywhere=everywhere, protect=[*protect, *map(escape, left)], **how)
    gates.left |= left
    return gates


def _way(model: nn.Module, graph: Graph, kind: str, protect: Collection[str]) -> tuple[bool | None, str]:
    """Whether a kind needs masks in all its slices, None where not even these do; and why one slice does not."""
    why = ""
    for wide in (False, True):
        try:
            gap = difference(Gates(model, graph, [kind], protect=protect, everywhere=[kind] if wide else []))
        except MaskError as error:
            return None, str(error)
        if gap <= TOLERANCE:
            return wide, ""
        why = f"the masked model would differ from the shrunk one by {gap:.1e} (a norm that is no module of its own)"
    return None, why


def maskable(model: nn.Module, graph: Graph, settings: MaskSettings) -> frozenset[str]:
    """The groups that masks of these settings decide; the model stays as it is. Raises as `on_model`."""
    how = {"freeze": settings.freeze, "protect": settings.protect, "sharing": settings.sharing}
    gates = on_model(model, graph, settings.kinds, **how)
    gates.close()
    return frozenset(g for v in gates.vectors for g in v.groups)


def difference(gates: Gates) -> float:
    """Largest difference from the oracle's masked model for a random plan, relative; the gates are closed after it."""
    model, graph = gates.model, gates.graph
    device = gates.alpha.device
    args, kwargs = tree_map(
        lambda v: v.to(device) if isinstance(v, Tensor) else v, graph.detail.captured.program.example_inputs
    )
    plan = half(gates)
    with torch.no_grad(), evaluating(model):
        gates.start_from(plan)
        got = [t.clone() for t in tensors_in(model(*args, **kwargs))]
        gates.start_from(identity(graph))
        gates.close()
        with masked(model, keep_from(graph, plan)), KeptStatistics():
            want = [t.clone() for t in tensors_in(model(*args, **kwargs))]
    gap = 0.0
    for a, b in zip(got, want, strict=True):
        part = float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
        gap = max(gap, part if part == part else float("inf"))
    return gap


def half(gates: Gates) -> Plan:
    """A random half of every masked group, each lane its own; every second whole branch."""
    rng = random.Random(0)
    groups = dict(identity(gates.graph).groups)
    for i, name in enumerate(dict.fromkeys(g for v in gates.vectors for g in v.groups)):
        old = groups[name]
        count = max(1, old.size // 2) if old.kind != "block" else i % 2
        lanes = (tuple(sorted(rng.sample(range(old.size), count))) for _ in range(old.lanes))
        groups[name] = GroupPlan(old.kind, old.size, old.lanes, tuple(lanes))
    return Plan(groups, gates.graph.fingerprint)
