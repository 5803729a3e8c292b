"""Pruning while training: learned masks and gates on the groups of a trace."""

from vitprune.masks.check import on_model
from vitprune.masks.cost import Pressure
from vitprune.masks.errors import MaskError
from vitprune.masks.gates import Gates
from vitprune.masks.search import Search
from vitprune.masks.settings import MaskSettings
from vitprune.masks.start import Start, check_start
from vitprune.masks.train import MaskResult, train_masks
from vitprune.masks.vtp import vtp

__all__ = ["Gates", "MaskError", "MaskResult", "MaskSettings", "Pressure", "Search", "Start"]
__all__ += ["check_start", "on_model", "train_masks", "vtp"]
