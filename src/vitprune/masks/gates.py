"""Gates: mask vectors on the groups of a trace, that multiply the model's weights while it is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitprune.allocate.allocate import obtained
from vitprune.allocate.widths import Minimum, check_minimum
from vitprune.arrays import Scores
from vitprune.masks.cut import Cuts
from vitprune.masks.errors import MaskError
from vitprune.masks.layout import layout_of
from vitprune.masks.norms import norms_of
from vitprune.masks.product import Product
from vitprune.masks.relax import Relaxation, StraightThrough
from vitprune.masks.select import Selector
from vitprune.masks.vectors import Sharing, tied, vectors_of, without
from vitprune.models.loaded import plain
from vitprune.plan import GroupPlan, Plan, identity
from vitprune.shrink import keep_from, shrink
from vitprune.trace.graph import KINDS as ALL_KINDS
from vitprune.trace.graph import Graph

KINDS = ("mlp", "qk", "v", "heads", "residual")


class Gates:
    """Masks that are trained beside the weights: a hook of `vitprune.recover.fit`.

    Between two steps the model's parameters are the masked ones, so that it computes what the model shrunk by `plan()`
    would; the unmasked weights are kept aside, and are what the optimizer changes. `close()` ends this and leaves the
    masked weights in the model. See `Product`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        kinds: Collection[str] | None = None,
        *,
        sharing: Sharing = "residual",
        freeze: Collection[str] = (),
        protect: Collection[str] = (),
        everywhere: Collection[str] = (),
        round_to: int = 1,
        minimum: Minimum = None,
        relaxation: Relaxation | None = None,
        lr: float = 1e-2,
        seed: int = 0,
    ) -> None:
        """Puts gates, all open, on `model`, which stays where it is; graph: its trace.

        kinds: of "mlp", "qk", "v", "heads", "residual", "block"; None: those of the first five that the model has.
        freeze, protect: kinds, and patterns of group names, that keep their size. everywhere: kinds masked in all their
        slices, see `on_model`. round_to, minimum: permitted sizes, as for `vitprune.allocate`. lr: learning rate of the
        masks, without weight decay. seed: of what the relaxation draws, by step, the same in all processes.

        Raises MaskError when a kind that is named has no group that can be masked, or weights are frozen.
        """
        check_minimum(minimum)
        model = plain(model)
        self.model, self.lr, self.seed = model, lr, seed
        self.relaxation: Relaxation = relaxation or StraightThrough()
        self.floors = floors(minimum)
        groups = without(graph.groups, freeze, KINDS if kinds is None else kinds, protect)
        self.left = {g.name: "; ".join(g.notes) for g in groups if not g.exact}
        cuts = Cuts(model, graph)
        self.vectors, without_cut = vectors_of(cuts, [g for g in groups if g.exact], sharing, everywhere)
        self.left |= without_cut
        if not self.vectors:
            raise MaskError(f"no group can be masked: {'; '.join(f'{n}: {why}' for n, why in self.left.items())}")
        self.graph = tied(graph, [v.groups for v in self.vectors if len(v.groups) > 1])
        norms = list(norms_of(graph))
        rms = {path for path, _, is_rms in norms if is_rms}
        labels = [(path, line) for path, line, _ in norms]
        split = dict.fromkeys(v.groups[0] for v in self.vectors if not v.alone) if sharing == "independent" else {}
        followers = [(name, s) for name in split for s in cuts.readers(graph[name])]
        self.layout, norm_lines = layout_of(graph, self.vectors, cuts.shapes, labels, followers, round_to, minimum)
        self.product = Product(model, self.layout, norm_lines, rms)
        device = next(model.parameters()).device
        self.select = Selector(self.layout, device)
        self.alpha = nn.Parameter(self.relaxation.start(self.layout.units).to(device))
        self.hard = torch.ones(self.layout.units, device=device)
        self.threshold = self.relaxation.threshold
        self.counts: Tensor | None = None  # (clusters,) where they are given instead of found by the threshold
        self.settled = False  # whether they are those of the target
        self._drawn: Tensor | None = None
        self.open_()

    def open_(self) -> None:
        """Takes hold of the model: its parameters become the masked ones, its norms see kept positions only."""
        self.product.open_()
        self._write(self.relaxation.evaluated(self.alpha, self.hard))

    def close(self) -> None:
        """Lets go of the model and leaves the masked weights in it."""
        if self.product.is_open:
            self.product.close_()

    @torch.no_grad()
    def refresh(self) -> None:
        """Decides anew which units stay, and masks the weights accordingly."""
        theta = self.relaxation.importance(self.alpha)
        counts = self.select.counts(theta > self.threshold) if self.counts is None else self.counts
        self.hard = self.select.top(theta, counts)
        self._write(self.relaxation.evaluated(self.alpha, self.hard))

    def settle(self) -> None:
        """From now on the counts are those of the target, which the caller sets, and no factors are drawn."""
        self.settled = True
        self.relaxation.calm()

    def extended(self, values: Tensor) -> Tensor:
        """As `Product.extended`."""
        return self.product.extended(values)

    @torch.no_grad()
    def _write(self, values: Tensor) -> None:
        """Masks the weights by the units' values.

        Where factors are drawn, units that are on in this step count as kept: statistics over fewer positions than are
        in use may be those of a single one, which has no variance.
        """
        self.product.write_(values, torch.maximum(self.hard, (values != 0).to(self.hard.dtype)))

    # the training loop's hook

    def extra_parameters(self) -> Mapping[str, tuple[Sequence[nn.Parameter], float, float]]:
        """The masks: their own learning rate, no weight decay."""
        return {"masks": ([self.alpha], self.lr, 0.0)}

    def before_forward(self, step: int) -> None:
        """Draws the factors of the step, where they are drawn: once, also where gradients are accumulated."""
        if self.relaxation.draws and self._drawn is None:
            self.relaxation.reseed((self.seed * 1_000_003 + step) % 2**63, self.alpha.device)
            self._drawn = self.relaxation.factors(self.alpha, self.hard)
            self._write(self._drawn.detach())

    def after_backward(self, step: int) -> None:
        """Gives the masks their gradients, and the optimizer the unmasked weights with theirs."""
        gradient, values = self.product.pull_back_(), self._drawn
        if values is None:
            values = self.relaxation.factors(self.alpha, self.hard)
        self._drawn = None
        torch.autograd.backward(values, gradient.to(values.dtype))

    def after_step(self, step: int) -> None:
        """Masks the changed weights by the changed masks."""
        with torch.no_grad():
            self.relaxation.settle_(self.alpha)
        self.refresh()

    def state_dict(self) -> dict[str, Tensor]:
        """The masks and the unmasked weights."""
        state = {"alpha": self.alpha.data} | {f"weight.{name}": w for name, w in self.product.weights.items()}
        return state if self.counts is None else state | {"counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        with torch.no_grad():
            self.alpha.copy_(state["alpha"])
            for name, weights in self.product.weights.items():
                weights.copy_(state[f"weight.{name}"])
        if "counts" in state:
            self.counts = state["counts"].to(self.alpha.device)
        self.refresh()

    # what has been decided

    def scores(self, closed: float = 1.0) -> Scores:
        """Group name -> float64 (lanes, size): what ranks the units, for every group of the graph.

        closed: factor for the units that are closed now. Once the masks are settled all open units come before them.
        """
        theta = self.relaxation.importance(self.alpha).detach()
        return self._by_group(torch.where(self.hard > 0.5, theta + self.settled, closed * theta).double().cpu())

    def _by_group(self, values: Tensor) -> dict[str, Any]:
        """Group name -> (lanes, size) of per-unit values; ones where no vector decides, the largest of several."""
        found: dict[str, Any] = {g.name: np.ones((g.lanes, g.size)) for g in self.graph.groups}
        seen: set[str] = set()
        for v, part in zip(self.vectors, self._parts(values), strict=True):
            own = part.view(v.lanes, v.size).numpy()
            for name in v.groups:
                found[name] = np.maximum(found[name], own) if name in seen else own.copy()
                seen.add(name)
        return found

    def plan(self) -> Plan:
        """The plan of now: what `vitprune.shrink` makes of it computes what the model computes now."""
        hard = self._by_group(self.hard.cpu())
        groups = dict(identity(self.graph).groups)
        for name in {g for v in self.vectors for g in v.groups}:
            old = groups[name]
            kept = tuple(tuple(np.flatnonzero(row > 0.5).tolist()) for row in hard[name])
            groups[name] = GroupPlan(old.kind, old.size, old.lanes, kept)
        sizes = {name: g.kept_size for name, g in groups.items()}
        notes: list[str] = []
        settings = {"not_pruned": self.left, "notes": notes, "kinds": sorted({v.kind for v in self.vectors})}
        return Plan(groups, self.graph.fingerprint, {}, obtained(self.graph, sizes), "masks", settings)

    def start_from(self, plan: Plan) -> None:
        """Sets the masks to a plan: importance 1 for kept units, 0 for the others."""
        with torch.no_grad():
            self.alpha.copy_(self.relaxation.inverse(self.table(plan)))
        self.refresh()

    @torch.no_grad()
    def adopt(self, plan: Plan) -> None:
        """Masks by a plan instead of by importance, until the next step; where a group has several masks, they stay."""
        parts = zip(self.vectors, self._parts(self.table(plan)), self._parts(self.hard), strict=True)
        self.hard = torch.cat([planned if v.alone else own for v, planned, own in parts])
        self._write(self.relaxation.evaluated(self.alpha, self.hard))

    def table(self, plan: Plan) -> Tensor:
        """(units,): 1 for the units that a plan keeps, 0 for the others."""
        parts = []
        for v in self.vectors:
            table = torch.zeros(v.lanes, v.size)
            for lane, kept in enumerate(plan.groups[v.groups[0]].kept):
                table[lane, list(kept)] = 1
            parts.append(table.flatten().to(self.alpha.device))
        return torch.cat(parts)

    def _parts(self, values: Tensor) -> Sequence[Tensor]:
        return torch.split(values, [v.lanes * v.size for v in self.vectors])

    @contextmanager
    def closed(self) -> Iterator[nn.Module]:
        """Meanwhile the model is a plain one, with the masked weights."""
        weights = self.product.let_go_()
        try:
            yield self.model
        finally:
            self.product.give_back_(weights)
            self.open_()

    def shrink(self, example: tuple[Any, ...], plan: Plan | None = None, *, check: bool = True) -> nn.Module:
        """The model that `plan` (or that of now) gives, all factors folded in; example: what the graph was traced with.

        Raises OracleError when it differs from the masked dense one.
        """
        if plan is not None:
            self.adopt(plan)
        chosen = self.plan() if plan is None else plan
        with self.closed() as model:
            return shrink(model, self.graph, chosen, check=check, example=example)

    def behind(self, plan: Plan) -> dict[str, int]:
        """Parameter name -> elements that a mask silences but that the shrunk model still has, where there are any.

        Only masks of which a group has several leave any: a unit goes when all of them drop it.
        """
        return self.product.silenced(keep_from(self.graph, plan), self.hard)


def floors(minimum: Minimum) -> frozenset[str]:
    """The kinds whose smallest size was given, and is more than the one unit that is always left."""
    given = dict.fromkeys(ALL_KINDS, minimum) if isinstance(minimum, int) else dict(minimum or {})
    return frozenset(kind for kind, value in given.items() if value > 1)
