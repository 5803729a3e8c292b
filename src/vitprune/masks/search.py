"""The search phase: gates, and the cost that closes them, as one hook of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitprune.latency import Timed
from vitprune.masks.alive import collapsed, guesses
from vitprune.masks.closing import close_share, close_to, closing_at, sizes_at
from vitprune.masks.cost import FIRST, GROWTH, RAMP, SETTLED, Pressure, SoftCost
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.relax import TopK
from vitprune.recover import History

FINEST = 0.005  # steps in which the budget of `TopK` falls
REACHED = 0.01  # of the dense model's cost, above a target that counts as reached: masks go up and down around it
LOOK_EVERY = 20  # steps between looks at what is left, each of which waits for the device


class Search:
    """Trains gates under a pressure; pass it to `vitprune.recover.fit` as its hook."""

    def __init__(
        self, gates: Gates, pressure: Pressure, steps: int, timed: Timed | None = None, *, ramp: float = RAMP
    ) -> None:
        """steps: of the whole search; timed: where latency is the cost; ramp: part in which a target's budget falls."""
        self.gates, self.pressure, self.steps, self.ramp = gates, pressure, steps, ramp
        self.cost = SoftCost(gates, pressure.measured, timed)
        self.goal = 0.0 if pressure.target is None else pressure.target.budget(self.cost.dense) / self.cost.dense
        device = gates.alpha.device
        first = FIRST if pressure.weight is None else pressure.weight
        self.strength = torch.tensor(first, dtype=torch.float64, device=device)
        self.follows = isinstance(gates.relaxation, TopK)  # the counts are set, and need no pressure
        self.falls = self.follows and ramp > 0
        self.sizes = self.gates.select.permitted[:, -1].double()
        self.followed = 1.0  # the budget that the counts of `TopK` were last set to
        self.now = torch.ones((), dtype=torch.float64, device=device)

    def budget(self, step: int) -> float:
        """The share of the dense cost that is permitted at a step."""
        done = min(1.0, (step + 1) / max(1.0, self.ramp * self.steps))
        return 1 - (1 - self.goal) * done

    def extra_loss(self, step: int) -> Tensor:
        """The cost's part of the loss, or the penalty on the masks."""
        if self.pressure.l1:
            return self.pressure.l1 * self.gates.alpha.abs().sum()
        cost = self.cost()
        self.now = cost.detach()
        if self.pressure.target is None:
            return (self.strength * cost).float()
        if self.follows or self.gates.settled:
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
        if self.falls and not self.gates.settled:
            self._follow(step)
        if self.pressure.closings > 1:
            with torch.no_grad():
                self.gates.alpha.mul_(self.gates.hard)  # also after this step of the optimizer
        self.gates.after_step(step)
        if self.pressure.target is not None and not self.pressure.l1 and step + 1 >= SETTLED * self.steps:
            self._settle()
        if closing := closing_at(step, self.steps, self.pressure.closings):
            self._close(closing / self.pressure.closings)
        if self.pressure.target is not None:
            above = self.now > self.budget(step)
            self.strength = torch.where(above, self.strength * GROWTH, self.strength / GROWTH).clamp(1e-6, 1e6)
        if step + 1 == self.steps or (self.pressure.weight is not None and (step + 1) % LOOK_EVERY == 0):
            self.check_alive(step)

    def standing(self, step: int) -> tuple[float, bool]:
        """The cost of now (VTP: the mean modulus of the gates), and whether it may end so.

        With a target: when its budget has fallen and is met; with a weight: when some units are closed; VTP: when the
        closings within the search are over.
        """
        if self.pressure.l1:
            parts = self.pressure.closings
            return float(self.gates.alpha.detach().abs().mean()), (step + 1) * parts >= (parts - 1) * self.steps
        cost = self.cost.exact() if self.gates.settled else float(self.cost().detach())
        if self.pressure.target is None:
            return cost, bool((self.gates.hard < 0.5).any())
        return cost, step + 1 >= self.ramp * self.steps and cost <= self.goal + REACHED

    def _settle(self) -> None:
        """From now on the sizes are the target's: units change places within them, and weights get used to them."""
        if not self.gates.settled:
            self.gates.settle()
            sizes_at(self.gates, self.cost.exact, self.goal)

    def _close(self, done: float) -> None:
        """Closes the part `done` of the gates that are to be closed, or as many as a part of the target needs."""
        if self.pressure.rate is not None:
            close_share(self.gates, done * self.pressure.rate)
        else:
            close_to(self.gates, lambda: float(self.cost().detach()), 1 - (1 - self.goal) * done)
        with torch.no_grad():  # these stay closed, and the others open whatever they become, until the next time
            self.gates.alpha.mul_(self.gates.hard)
        self.gates.threshold = 0.0

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

    def check_alive(self, step: int, history: History | None = None, images: int = 0, classes: int = 0) -> None:
        """Raises MaskError when the model is dead; numbers that are not finite are the training loop's to report.

        history: of the search that is over, with the number of validation images and of classes. A target's model may
        guess: it was asked for, and its fine-tuning is yet to come.
        """
        whole = bool(torch.isfinite(self.gates.alpha).all())
        found = collapsed(self.gates, self.pressure.target is not None) if whole else ""
        if not found and history is not None and self.pressure.target is None:
            first, last = history.start_val_top1 or 0.0, history.epochs[-1].val_top1
            if guesses(last, classes, images) and not guesses(first, classes, images):
                found = f"the validation top-1 fell from {100 * first:.1f} to {100 * last:.1f} %, which is guessing,"
        if not found:
            return
        asked, remedy = f"the target {self.pressure.target}", "ask for a larger one"
        if self.pressure.weight is not None:
            asked, remedy = f"a cost weight of {self.pressure.weight:g}", "lower it"
        elif self.pressure.rate is not None:
            asked, remedy = f"a rate of {self.pressure.rate:g}", "lower it"
        raise MaskError(
            f"{found} at step {step}, with {asked}: a model that is dead; {remedy}, give smallest sizes (minimum, "
            "--min-mlp and the like), or lower the masks' learning rate"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The gates' state and the weight of now."""
        numbers = {"followed": self.followed, "threshold": self.gates.threshold}
        numbers["settled"] = float(self.gates.settled)
        numbers["goal"] = self.goal  # of a latency in ms it is measured anew in every process
        mine = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return {**self.gates.state_dict(), "strength": self.strength, **mine}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self.gates.threshold = float(state["threshold"])
        if state["settled"]:
            self.gates.settle()
        self.gates.load_state_dict(state)
        self.strength = state["strength"].to(self.strength.device).clone()
        self.followed, self.goal = float(state["followed"]), float(state["goal"])
