"""Masks that begin with a model pruned by scores, instead of with the whole one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.arrays import Scores
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import TopK
from vitprune.masks.settings import MaskSettings
from vitprune.plan import Plan
from vitprune.shrink import keep_from
from vitprune.trace.graph import Graph

LEAST = 0.05  # distance of a mask from the threshold, and from 0


def check_start(settings: MaskSettings) -> None:
    """Raises MaskError for settings of masks that cannot begin with a pruned model."""
    if settings.pressure.target is None or settings.pressure.l1:
        raise MaskError("masks begin with a pruned model at a target; a weight of the cost, and VTP, have none")
    if settings.warmup is not None:
        raise MaskError("a warm-up is of a dense model; masks that begin with a pruned one have none")


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What scores have decided.

    The search then trains masks and weights of the model as `plan` has it: units near the border between kept and
    dropped may still change places, and the cost is at the target from the first step.
    """

    plan: Plan
    model: nn.Module | None  # shrunk by the plan, its weights changed since then or not; None: they are in place
    scores: Scores  # what ranks the units, for the dense model's groups

    def weights_(self, model: nn.Module, graph: Graph) -> None:
        """Gives `model`, which the plan was made for, the weights of the shrunk one; those of dropped units stay."""
        if self.model is None:
            return
        keep, small = keep_from(graph, self.plan), dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, parameter in model.named_parameters(remove_duplicate=False):
                if name not in small:
                    continue  # of a branch that is gone
                lines = keep.tensor(name) or (None,) * parameter.ndim
                places = [np.arange(n) if k is None else k for n, k in zip(parameter.shape, lines, strict=True)]
                source = small[name].detach().to(parameter.device)
                if source.shape == tuple(len(p) for p in places):  # else a second name of a tied one
                    parameter[tuple(torch.as_tensor(p, device=parameter.device) for p in np.ix_(*places))] = source

    def masks_(self, gates: Gates) -> None:
        """Opens the masks of kept units and closes the others, the nearer to the threshold the closer they ranked.

        Raises MaskError where a mask of several groups would have to keep other units in each.
        """
        for v in gates.vectors:
            other = next((n for n in v.groups if self.plan.groups[n].kept != self.plan.groups[v.groups[0]].kept), None)
            if other is not None:
                raise MaskError(
                    f"masks that are tied across blocks need a plan that keeps the same units in all of them, but it "
                    f"keeps others in {other} than in {v.groups[0]}; let them begin with the dense model, or share "
                    "them otherwise"
                )
        kept, rank = gates.table(self.plan) > 0.5, self._ranks(gates)
        low, high = LEAST / 2, (1 - LEAST) / 2
        importance = torch.where(kept, 0.5 + rank.clamp(low, 0.5), rank.clamp(low, high))
        with torch.no_grad():
            gates.alpha.copy_(gates.relaxation.inverse(importance))
        if isinstance(gates.relaxation, TopK):
            gates.counts = gates.select.counts(kept)
        gates.refresh()

    def _ranks(self, gates: Gates) -> Tensor:
        """(units,): 0..0.5 from the lowest to the highest score of each lane."""
        parts = []
        for v in gates.vectors:
            found = self.scores.get(v.groups[0])
            found = np.ones((v.lanes, v.size)) if found is None else found
            parts.append(found.argsort(axis=1, kind="stable").argsort(axis=1).ravel() / (2 * v.size))
        return torch.as_tensor(np.concatenate(parts), dtype=torch.float32, device=gates.alpha.device)
