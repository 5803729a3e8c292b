"""What a model computes on calibration images, operator by operator."""

from vitprune.calibrate.covariance import Covariance, add_products_, oas, weighted
from vitprune.calibrate.finite import CalibrationError, check_finite
from vitprune.calibrate.images import images_of
from vitprune.calibrate.moments import Moments
from vitprune.calibrate.replay import Env, Replay
from vitprune.calibrate.sensitivity import Sensitivity, sensitivities
from vitprune.calibrate.sites import Site, sites
from vitprune.calibrate.visit import visit

__all__ = [
    "CalibrationError",
    "Covariance",
    "Env",
    "Moments",
    "Replay",
    "Sensitivity",
    "Site",
    "add_products_",
    "check_finite",
    "images_of",
    "oas",
    "sensitivities",
    "sites",
    "visit",
    "weighted",
]
