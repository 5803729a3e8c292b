"""What makes a domain of other images. Tensor names: N images, C channels, H height, W width; uint8 in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def rotated(x_NCHW: Tensor, degrees: float) -> Tensor:
    """The images turned counter-clockwise about their middle, bilinear, black where nothing was.

    Source: the rotation domains of Ghifary et al. (arXiv 1508.07680).
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    turned: Tensor = functional.rotate(x_NCHW, degrees, interpolation=InterpolationMode.BILINEAR)
    return turned


def plain(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The images as they are; the strength is of no meaning."""
    return x_N1HW


def inverted(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each value v as (1 - strength) v + strength (255 - v): 1 is the negative."""
    return _bytes(x_N1HW * (1 - 2 * strength) + 255.0 * strength)


def edges(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """`strength` times a quarter of the magnitude of Sobel's gradient; the border repeats its last pixels.

    A quarter of either gradient, which weighs six pixels by 1, 2, 1 and -1, -2, -1, lies in 0..255.
    """
    row = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernel = torch.stack([row, row.T])[:, None]
    padded = torch.nn.functional.pad(x_N1HW.float(), (1, 1, 1, 1), mode="replicate")
    return _bytes(torch.nn.functional.conv2d(padded, kernel).norm(dim=1, keepdim=True) * strength / 4)


def sketch(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """`edges`, dark on white."""
    return 255 - edges(x_N1HW, strength, generator)


def coloured(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """(N, 3, H, W): black and white become two random colours per image, whose luma differs by `strength` or more.

    The idea is that of the coloured digits of arXiv 1907.02893, but colours say nothing of the class.
    """
    count = len(x_N1HW)
    luma = torch.tensor(LUMA)
    pairs = torch.rand((2, count, 3), generator=generator)
    for _ in range(100):
        close = ((pairs[0] - pairs[1]) @ luma).abs() < strength
        if not close.any():
            break
        pairs[:, close] = torch.rand((2, int(close.sum()), 3), generator=generator)
    low, high = pairs[:, :, :, None, None] * 255
    share = x_N1HW.float() / 255
    return _bytes(low * (1 - share) + high * share)


def noise(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise added, of a standard deviation of `strength` times the range of values, and cut to the range.

    Source: ImageNet-C (arXiv 1903.12261), whose severities 1 to 5 are 0.08, 0.12, 0.18, 0.26, 0.38.
    """
    return _bytes(x_N1HW + 255 * strength * torch.randn(x_N1HW.shape, generator=generator))


def blur(x_N1HW: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A Gaussian blur of standard deviation `strength` in pixels.

    Source: CIFAR-10-C (arXiv 1903.12261), whose severities 1 to 5 on 32 pixels are 0.4, 0.6, 0.7, 0.8, 1.0.
    """
    from torchvision.transforms.v2 import functional

    blurred: Tensor = functional.gaussian_blur(x_N1HW, 2 * max(1, round(3 * strength)) + 1, strength)
    return blurred


def _bytes(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class Change:
    """A transform, and how strong it may be."""

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    strength: float  # where none is given
    most: float  # the largest that makes sense


CHANGES: Mapping[str, Change] = {
    "plain": Change(plain, 1.0, 1.0),
    "edges": Change(edges, 2.0, 16.0),
    "sketch": Change(sketch, 2.0, 16.0),
    "inverted": Change(inverted, 1.0, 1.0),
    "coloured": Change(coloured, 0.3, 0.6),
    "noise": Change(noise, 0.26, 1.0),
    "blur": Change(blur, 1.0, 8.0),
}
