"""Seeded augmentation. Tensor names: B images, C channels, H height, W width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vitprune.errors import DataError


@dataclass(frozen=True, slots=True)
class AugmentSettings:
    """What is done to training images; zero switches a part off. Mixing of images belongs to the training loop."""

    flip: bool = True  # mirror left-right with probability 0.5
    crop_padding: int = 0  # pixels of black padding at 32 x 32 (scaled with the size) before a random crop
    erasing: float = 0.0  # probability that a rectangle of 2 % to 25 % of an image is blanked
    resized_crop: float = 0.0  # smallest share of the area that a random crop keeps; 0 = central crop
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation changes
    randaugment: float = 0.0  # image folders: magnitude of RandAugment, 0..10, with a standard deviation of 0.5
    erasing_noise: bool = False  # erased rectangles hold noise instead of the mean colour
    hue: float = 0.0  # image folders: strength of hue changes, 0..0.5
    grayscale: float = 0.0  # probability that colours become their luma

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or not (0 <= self.erasing <= 1 and 0 <= self.resized_crop <= 1):
            raise DataError(f"crop padding must not be negative, erasing and crop share lie in 0..1, but got {self}")
        if self.color_jitter < 0:
            raise DataError(f"colour jitter must not be negative, but got {self.color_jitter}")
        if not (0 <= self.hue <= 0.5 and 0 <= self.grayscale <= 1):
            raise DataError(f"hue must lie in 0..0.5 and grayscale in 0..1, but got {self.hue} and {self.grayscale}")
        if not 0 <= self.randaugment <= 10:
            raise DataError(f"randaugment must be a magnitude in 0..10, but got {self.randaugment}")

    @classmethod
    def none(cls) -> AugmentSettings:
        """No augmentation."""
        return cls(flip=False)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AugmentSettings:
        """The value that `to_json` wrote."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def flip(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): each image mirrored with probability one half."""
    mirrored = torch.rand(len(x_BCHW), generator=generator) < 0.5
    return torch.where(mirrored.to(x_BCHW.device).view(-1, 1, 1, 1), x_BCHW.flip(-1), x_BCHW)


def shift(x_BCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): each image padded with zeros on all sides and cut back to size at a random place."""
    batch, channels, height, width = x_BCHW.shape
    padded = torch.nn.functional.pad(x_BCHW, (padding,) * 4)
    offset = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator).to(x_BCHW.device)
    rows = offset[0, :, None] + torch.arange(height, device=x_BCHW.device)
    columns = offset[1, :, None] + torch.arange(width, device=x_BCHW.device)
    wide = padded.gather(2, rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
    return wide.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def erase(x_BCHW: Tensor, probability: float, generator: torch.Generator, *, noise: bool = False) -> Tensor:
    """(B, C, H, W): with `probability` a rectangle of an image set to 0 (area 2-25 %, aspect 0.3-3.3).

    noise: standard normal values, pixel by pixel, instead of 0.

    Source: arXiv 1708.04896, with the mean (0 after normalisation) as the fill and a smaller largest area.
    """
    batch, _, height, width = x_BCHW.shape
    draw = torch.rand(5, batch, generator=generator).to(x_BCHW.device)
    area = (0.02 + draw[0] * 0.23) * height * width
    aspect = torch.exp((draw[1] * 2 - 1) * 1.2)
    high = (area * aspect).sqrt().round().clamp(1, height)
    wide = (area / aspect).sqrt().round().clamp(1, width)
    top, left = (draw[2] * (height - high + 1)).floor(), (draw[3] * (width - wide + 1)).floor()
    row = torch.arange(height, device=x_BCHW.device)
    column = torch.arange(width, device=x_BCHW.device)
    in_rows = (row >= top[:, None]) & (row < (top + high)[:, None])
    in_columns = (column >= left[:, None]) & (column < (left + wide)[:, None])
    hit = (draw[4] < probability)[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
    if noise:
        return torch.where(hit[:, None], torch.randn(x_BCHW.shape, generator=generator).to(x_BCHW), x_BCHW)
    return x_BCHW.masked_fill(hit[:, None], 0.0)


def resized_crop(x_BCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): a random rectangle of each image, of `share` to 1 of its area, at the whole size again, bilinear.

    Source: torchvision's RandomResizedCrop, aspect ratios 3/4 to 4/3. Deviation: a side that would be longer than the
    image's is cut to it instead of drawn anew.
    """
    draw = torch.rand((4, len(x_BCHW)), generator=generator).to(x_BCHW.device)
    area, aspect = share + draw[0] * (1 - share), torch.exp((draw[1] * 2 - 1) * math.log(4 / 3))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    zero = torch.zeros_like(wide)
    across = torch.stack([wide, zero, (2 * draw[2] - 1) * (1 - wide)], dim=1)
    down = torch.stack([zero, high, (2 * draw[3] - 1) * (1 - high)], dim=1)
    grid = torch.nn.functional.affine_grid(torch.stack([across, down], dim=1), list(x_BCHW.shape), align_corners=False)
    cut: Tensor = torch.nn.functional.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)
    return cut


def jitter(x_BCHW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) in 0..255: brightness, then contrast, then (of three channels) saturation times 1 +- `strength`.

    Source: torchvision's ColorJitter. Deviation: always in this order, and no hue.
    """
    factors = 1 + (2 * torch.rand((3, len(x_BCHW)), generator=generator) - 1) * strength
    light, contrast, colour = factors.clamp(min=0).to(x_BCHW.device)[:, :, None, None, None]
    x: Tensor = (x_BCHW * light).clamp(0, 255)
    middle = luma(x).mean(dim=(1, 2, 3), keepdim=True)
    x = (middle + (x - middle) * contrast).clamp(0, 255)
    if x.shape[1] == 1:
        return x
    coloured: Tensor = (luma(x) + (x - luma(x)) * colour).clamp(0, 255)
    return coloured


def bleach(x_BCHW: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """(B, C, H, W): with `probability` the colours of an image become their luma."""
    drawn = (torch.rand(len(x_BCHW), generator=generator) < probability).to(x_BCHW.device)
    return torch.where(drawn.view(-1, 1, 1, 1), luma(x_BCHW).expand_as(x_BCHW), x_BCHW)


def luma(x_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) of one or three channels."""
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    weights = torch.tensor((0.299, 0.587, 0.114), device=x_BCHW.device).view(1, 3, 1, 1)
    one: Tensor = (x_BCHW * weights).sum(1, keepdim=True)
    return one


def move(x_BCHW: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) images in 0..255, changed on their own device; `generator` lives on the CPU."""
    if settings.resized_crop:
        x_BCHW = resized_crop(x_BCHW, settings.resized_crop, generator)
    if settings.flip:
        x_BCHW = flip(x_BCHW, generator)
    if settings.crop_padding:
        x_BCHW = shift(x_BCHW, max(1, round(settings.crop_padding * x_BCHW.shape[-1] / 32)), generator)
    if settings.color_jitter:
        x_BCHW = jitter(x_BCHW, settings.color_jitter, generator)
    if settings.grayscale:
        x_BCHW = bleach(x_BCHW, settings.grayscale, generator)
    return x_BCHW
