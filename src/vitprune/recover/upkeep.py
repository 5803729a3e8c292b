"""What a training run keeps and tells on its way; none of it changes the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitprune.recover.settings import TrainError


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Checkpoints and trackers of one run."""

    checkpoint_every: int = 0  # steps between checkpoints within an epoch; 0: at the ends of epochs only
    trackers: tuple[str, ...] = ()  # of those that accelerate knows: "tensorboard", "wandb", ...
    log_dir: Path | None = None  # where trackers that write files put them

    def __post_init__(self) -> None:
        if self.checkpoint_every < 0:
            raise TrainError(f"checkpoint_every must not be negative, but got {self.checkpoint_every}")
