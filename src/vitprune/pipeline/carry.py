"""What a step of a schedule hands to the next: scores in the dense model's terms, and weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from vitprune.arrays import Floats, Scores
from vitprune.plan import Plan
from vitprune.shrink.keep import Keep
from vitprune.trace.graph import Graph


def dense_scores(found: Scores, plan: Plan, graph: Graph, names: Mapping[str, str]) -> dict[str, Floats]:
    """Scores of the model pruned by `plan`, placed where its units are in the dense one; -inf for what is gone.

    names: what the pruned model's groups are called in `graph`, the dense one (see `compose.same_groups`). Lanes that
    are gone get the mean of the others, so that means over lanes stay what they are. Groups of the dense model that the
    pruned one has no longer are left out.
    """
    placed: dict[str, Floats] = {}
    for small, values in found.items():
        name = names.get(small, small)
        if name not in plan.groups:
            continue
        was, heads = plan.groups[name], graph[name].lane_group
        lanes = range(was.lanes) if heads is None else plan.groups[heads].kept[0]
        if values.shape != (len(lanes), was.kept_size):
            continue
        middle = np.sort(values, axis=1)[:, ::-1].mean(axis=0)
        out = np.full((was.lanes, was.size), -np.inf)
        for lane, kept in enumerate(was.kept):
            out[lane, list(kept)] = values[list(lanes).index(lane)] if lane in lanes else middle
        placed[name] = out
    return placed


def carry_(new: nn.Module, old: nn.Module, keep: Keep, before: Keep) -> None:
    """Gives `new`, cut from the dense model by `keep`, the parameters of `old`, which was cut by `before` and changed.

    `keep` keeps no position that `before` does not.
    """
    theirs = dict(old.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in new.named_parameters(remove_duplicate=False):
            source = theirs[name].detach()
            for dim, (kept, had) in enumerate(zip(keep.tensor(name), before.tensor(name), strict=True)):
                if kept is not None:
                    index = kept if had is None else np.searchsorted(had, kept)
                    source = source.index_select(dim, torch.as_tensor(index, device=source.device))
            if source.shape == parameter.shape:  # else a second name of a tied one, which the trace does not know
                parameter.copy_(source)
