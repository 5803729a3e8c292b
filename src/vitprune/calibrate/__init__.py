"""What a model computes on calibration images, operator by operator."""

from vitprune.calibrate.images import images_of
from vitprune.calibrate.replay import Env, Replay
from vitprune.calibrate.sites import Site, sites

__all__ = ["Env", "Replay", "Site", "images_of", "sites"]
