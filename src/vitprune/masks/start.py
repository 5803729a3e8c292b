"""Masks that begin with a model pruned by scores, instead of with the whole one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.allocate import Target
from vitprune.allocate.allocate import together, unit_costs
from vitprune.allocate.ranking import Cluster, cluster_loss, slot_scores
from vitprune.arrays import Floats, Scores
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import TopK
from vitprune.masks.settings import MaskSettings
from vitprune.plan import Plan
from vitprune.shrink import keep_from
from vitprune.trace.graph import Graph

LEAST = 0.05  # distance of a mask from the threshold, and from 0
NOTHING = 1e-12  # of the largest value of a group: what is below is worth nothing


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
        """Opens the masks of kept units and closes the others, the nearer to the threshold the less they differ from
        the border between kept and dropped units.

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
        kept, worth = gates.table(self.plan) > 0.5, self._worth(gates)
        importance = torch.where(kept, worth.clamp_min((1 + LEAST) / 2), worth.clamp(LEAST / 2, (1 - LEAST) / 2))
        with torch.no_grad():
            gates.alpha.copy_(gates.relaxation.inverse(importance))
        if isinstance(gates.relaxation, TopK):
            gates.counts = gates.select.counts(kept)
        gates.refresh()

    def _worth(self, gates: Gates) -> Tensor:
        """(units,): v / (v + border) in 0..1 of each unit's value v; 1 where nothing ranks the units."""
        curves, parts = self._curves(gates), list[Any]()
        for v in gates.vectors:
            name = v.groups[0]
            if name not in curves:
                parts.append(np.ones(v.lanes * v.size))
                continue
            values, border = curves[name]
            ranks = (-self.scores[name]).argsort(axis=1, kind="stable").argsort(axis=1)
            parts.append((values / (values + border))[ranks].ravel())
        return torch.as_tensor(np.concatenate(parts), dtype=torch.float32, device=gates.alpha.device)

    def _curves(self, gates: Gates) -> dict[str, tuple[Floats, float]]:
        """Name of a scored group -> (size,) value of its r-th best units, and the value at the border of what is kept.

        Values are what the plan's scope ranked by: of "per-cost" the score that is lost with a unit over what the unit
        costs, with one border for all groups; else the score, with a border in every group that lost units.
        """
        scored = {g for v in gates.vectors for g in v.groups if g in self.scores}
        per_cost = self.plan.settings.get("scope") == "per-cost"
        counted = Target("params" if "params" in self.plan.asked else "macs", 0.5)
        clusters = [Cluster(members, np.zeros(0, dtype=np.int64)) for members in together(gates.graph, scored)]
        slots = {g.name: slot_scores(self.scores[g.name]) for c in clusters for g in c.groups}
        values = [cluster_loss(c, slots) for c in clusters]
        if per_cost:
            costs = unit_costs(gates.graph, clusters, counted)
            values = [v / costs[c.groups[0].name] for v, c in zip(values, clusters, strict=True)]
        floors = [max(NOTHING * float(v.max()), float(np.finfo(np.float64).tiny)) for v in values]
        values = [np.maximum(v, floor) for v, floor in zip(values, floors, strict=True)]
        borders = []
        for cluster, v in zip(clusters, values, strict=True):
            kept = self.plan.groups[cluster.groups[0].name].kept_size
            borders.append(float(np.sqrt(v[kept - 1]) * np.sqrt(v[kept])) if kept < len(v) else 0.0)
        # Every group counts; where units are worth nothing there is no border.
        found = [b for c, b, floor in zip(clusters, borders, floors, strict=True) for _ in c.groups if b > floor]
        if per_cost and found:
            borders = [float(np.exp(np.mean(np.log(found))))] * len(borders)
        return {g.name: (v, b) for c, v, b in zip(clusters, values, borders, strict=True) for g in c.groups}
