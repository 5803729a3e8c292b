"""Activations must be numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from vitprune.calibrate.sites import Site
from vitprune.errors import VitpruneError


class CalibrationError(VitpruneError):
    """Calibration images that cannot be used."""


def check_finite(site: Site, x: Tensor) -> None:
    """Pass for activations without NaN and infinity. Raises CalibrationError that names the layer."""
    quick = bool(torch.isfinite(x.sum()))  # False also for finite numbers that add up to more than their type holds
    if not quick and not bool(torch.isfinite(x.sum(dtype=torch.float64))):
        layer = site.weight.removesuffix(".weight")
        raise CalibrationError(
            f"activations at layer {layer!r} are NaN or infinite on the calibration images; look at the images' "
            "normalisation and the weights before it, or calibrate in float32"
        )
