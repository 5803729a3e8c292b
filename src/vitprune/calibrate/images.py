"""Images out of whatever a calibration batch is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def images_of(batch: Any, device: torch.device | str) -> Tensor:
    """The images (B, C, H, W) of a batch, which is either they or (images, labels), on `device`; B is at least 2.

    A single image is given twice, as a batch of 1 cannot be told from broadcasting.
    """
    images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
    images = images.to(device)
    return torch.cat([images, images]) if len(images) == 1 else images
