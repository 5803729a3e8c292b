"""Models by name: timm, transformers, torchvision, a callable of one's own, and those that come with vitprune."""

from vitprune.models.load import load, skeleton
from vitprune.models.loaded import LoadedModel, example, logits
from vitprune.models.source import ModelSource, parse
from vitprune.preprocessing import Preprocessing

__all__ = ["LoadedModel", "ModelSource", "Preprocessing", "example", "load", "logits", "parse", "skeleton"]
