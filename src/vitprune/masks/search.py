"""The search phase: gates, and the cost that closes them, as one hook of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitprune.latency import Timed
from vitprune.masks.cost import FIRST, GROWTH, RAMP, Pressure, SoftCost
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import TopK

FINEST = 0.005  # steps in which the budget of `TopK` falls
COLLAPSED = 0.75  # share of masks at their smallest size, from which on a model counts as dead
LOOK_EVERY = 20  # steps between looks at what is left, each of which waits for the device


class Search:
    """Trains gates under a pressure; pass it to `vitprune.recover.fit` as its hook."""

    def __init__(self, gates: Gates, pressure: Pressure, steps: int, timed: Timed | None = None) -> None:
        """steps: of the whole search, over which a target's budget falls. timed: where latency is the cost."""
        self.gates, self.pressure, self.steps = gates, pressure, steps
        self.cost = SoftCost(gates, pressure.measured, timed)
        self.goal = 0.0 if pressure.target is None else pressure.target.budget(self.cost.dense) / self.cost.dense
        device = gates.alpha.device
        first = FIRST if pressure.weight is None else pressure.weight
        self.strength = torch.tensor(first, dtype=torch.float64, device=device)
        self.follows = isinstance(gates.relaxation, TopK)  # the counts are set, and need no pressure
        self.sizes = self.gates.select.permitted[:, -1].double()
        self.followed = 1.0  # the budget that the counts of `TopK` were last set to
        self.now = torch.ones((), dtype=torch.float64, device=device)

    def budget(self, step: int) -> float:
        """The share of the dense cost that is permitted at a step."""
        done = min(1.0, (step + 1) / max(1.0, RAMP * self.steps))
        return 1 - (1 - self.goal) * done

    def extra_loss(self, step: int) -> Tensor:
        """The cost's part of the loss, or the penalty on the masks."""
        if self.pressure.l1:
            return self.pressure.l1 * self.gates.alpha.abs().sum()
        cost = self.cost()
        self.now = cost.detach()
        if self.pressure.target is None:
            return (self.strength * cost).float()
        if self.follows:
            return cost.detach().float() * 0
        return (self.strength * torch.relu(cost - self.budget(step))).float()

    def extra_parameters(self) -> Mapping[str, tuple[Sequence[nn.Parameter], float, float]]:
        """The masks."""
        return self.gates.extra_parameters()

    def before_forward(self, step: int) -> None:
        """See `Gates`."""
        self.gates.relaxation.begin(self.gates.select.lane, min(1.0, step / max(1, self.steps - 1)))
        self.gates.before_forward(step)

    def after_backward(self, step: int) -> None:
        """See `Gates`."""
        self.gates.after_backward(step)

    def after_step(self, step: int) -> None:
        """See `Gates`; a target's weight follows the cost. Raises MaskError when the model is dead."""
        if self.follows:
            self._follow(step)
        self.gates.after_step(step)
        if self.pressure.target is not None:
            above = self.now > self.budget(step)
            self.strength = torch.where(above, self.strength * GROWTH, self.strength / GROWTH).clamp(1e-6, 1e6)
        if step + 1 == self.steps or (self.pressure.weight is not None and (step + 1) % LOOK_EVERY == 0):
            self._look(step)

    def _follow(self, step: int) -> None:
        """Sets the counts to the largest share of all sizes within the budget, whenever that has fallen a little."""
        budget = self.budget(step)
        if self.followed - budget < FINEST and not budget == self.goal < self.followed:
            return
        self.followed, low, high = budget, 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            self.gates.counts = self.gates.select.shares(middle, self.sizes)
            self.gates.refresh()
            low, high = (middle, high) if float(self.cost().detach()) <= budget else (low, middle)
        self.gates.counts = self.gates.select.shares(low, self.sizes)

    def _look(self, step: int) -> None:
        lost = self.gates.select.at_smallest(self.gates.hard)
        if lost >= COLLAPSED:
            asked = (
                f"a cost weight of {self.pressure.weight:g}"
                if self.pressure.target is None
                else f"the target {self.pressure.target}"
            )
            raise MaskError(
                f"{100 * lost:.0f} % of the masks are at their smallest size at step {step}, with {asked}: a model "
                "that is dead. Lower the weight or ask for a larger target; give smallest sizes; or lower the masks' "
                "learning rate"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """The gates' state and the weight of now."""
        followed = torch.tensor(self.followed, dtype=torch.float64)
        goal = torch.tensor(self.goal, dtype=torch.float64)  # of a latency in ms it is measured anew in every process
        return {**self.gates.state_dict(), "strength": self.strength, "followed": followed, "goal": goal}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self.gates.load_state_dict(state)
        self.strength = state["strength"].to(self.strength.device).clone()
        self.followed, self.goal = float(state["followed"]), float(state["goal"])
