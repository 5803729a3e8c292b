"""What a run's checkpoints hold tensors of, put in and taken out; and what two runs must share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune.differences import differing
from vitprune.recover.checkpoint import pack_optimizer, unpack_optimizer_
from vitprune.recover.hook import StatefulHook
from vitprune.recover.settings import TrainError

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The parts of a run whose tensors change."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None  # the averaged weights
    features: nn.Module | None  # maps between token features
    hook: StatefulHook | None

    def tensors(self) -> dict[str, State]:
        """By part, then by name."""
        own: dict[str, Any] = {"model": self.model, "average": self.average, "features": self.features}
        found: dict[str, State] = {
            name: part.state_dict() for name, part in (own | {"hook": self.hook}).items() if part is not None
        }
        return found | {"optimizer": pack_optimizer(self.optimizer)}

    def load_(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restores what `tensors` gave."""
        self.model.load_state_dict(dict(tensors["model"]))
        unpack_optimizer_(self.optimizer, tensors["optimizer"])
        for name, part in (("average", self.average), ("features", self.features)):
            if part is not None:
                part.load_state_dict(dict(tensors[name]))
        if self.hook is not None:
            self.hook.load_state_dict(dict(tensors.get("hook", {})))

    def check_finite(self, step: int, folder: Path) -> None:
        """Raises TrainError for weights that are not finite after a step: they would replace a good checkpoint.

        Buffers and a hook's state may be infinite (masks), but hold no NaN.
        """
        bad = [name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        held = {} if self.hook is None else self.hook.state_dict()
        others = [*self.model.named_buffers(), *((f"the hook's {name}", tensor) for name, tensor in held.items())]
        bad += [name for name, tensor in others if bool(torch.isnan(tensor).any())]
        if bad:
            raise TrainError(
                f"{bad[0]} is not finite after step {step}, and was not saved: {folder} holds the last good checkpoint "
                "if there was one; lower the learning rate, lengthen the warm-up, or train without autocast (amp no)"
            )


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Raises TrainError naming what differs between this run and the one that left the checkpoint."""
    names = differing(theirs["settings"], mine["settings"])
    names += [k for k in mine if k != "settings" and mine[k] != theirs.get(k)]
    if names:
        raise TrainError(
            f"{folder} holds checkpoints of another run (differs in {', '.join(names)}); "
            "give another folder, or delete it to start over"
        )
