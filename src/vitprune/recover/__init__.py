"""Training: fine-tuning after pruning, training from scratch, distillation."""

from vitprune.recover.fit import fit
from vitprune.recover.hook import CostHook, LossHook, ParameterHook, StatefulHook, StepHook
from vitprune.recover.settings import EpochRecord, History, TrainError, TrainSettings
from vitprune.recover.upkeep import Upkeep

__all__ = ["CostHook", "EpochRecord", "History", "LossHook", "ParameterHook", "StatefulHook", "StepHook", "TrainError"]
__all__ += ["TrainSettings", "Upkeep", "fit"]
