"""Calibration images, in part blended with coloured noise: for models that will meet images unlike these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitprune.data.batches import Batch, Batches
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing

STEEPEST = 2.0  # exponent of the spectrum's fall: 0 is white noise, 2 clouds
CONTRAST = 0.5  # standard deviation at most, of the range


def colour_noise(count: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """(count, channels, H, W) in 0..1: Gaussian noise whose amplitude falls with the frequency, each image at its rate.

    Every image has random colours as its means and a random contrast. The spectra of natural images fall as f^-1, about
    the middle of the rates here (Ruderman and Bialek, Phys. Rev. Lett. 73, 1994).
    """
    height, width = size
    down, along = torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)
    frequency = (down**2 + along**2).sqrt().clamp_min(1 / max(height, width))
    fall = STEEPEST * torch.rand(count, 1, 1, 1, generator=generator)
    white = torch.fft.rfft2(torch.randn(count, channels, height, width, generator=generator))
    noise = torch.fft.irfft2(white / frequency**fall, s=(height, width))
    noise = noise - noise.mean((2, 3), keepdim=True)
    noise = noise / noise.std((1, 2, 3), correction=0, keepdim=True).clamp_min(1e-6)
    colour = torch.rand(count, channels, 1, 1, generator=generator)
    contrast = CONTRAST * torch.rand(count, 1, 1, 1, generator=generator)
    found: Tensor = (colour + contrast * noise).clamp_(0, 1)
    return found


class Blended:
    """Batches whose images are blended with `colour_noise`, a random share of them, at random weights in 0..1.

    Every pass gives the same images. Labels stay: an image that is nearly all noise still has its own, so scores that
    need labels see some that are wrong.

    Source: mixing with structured patterns to be robust to other images is PixMix's (arXiv 2112.05135), there for
    training and with fractals; that it keeps what pruning and refit would else forget was measured here.
    """

    def __init__(self, batches: Batches, share: float, preprocessing: Preprocessing, seed: int = 0) -> None:
        """share: of the images. Raises DataError when it does not lie in 0..1."""
        if not 0 <= share <= 1:
            raise DataError(f"blend is a share of the calibration images, in 0..1, but got {share:g}")
        self.batch_size = batches.batch_size
        self._batches, self._share, self._preprocessing, self._seed = batches, share, preprocessing, seed

    @property
    def size(self) -> int:
        """Images, blended or not."""
        return self._batches.size

    @property
    def parts(self) -> tuple[Blended, ...]:
        """Those of each domain, where the batches come by domain."""
        found: Sequence[Batches] = getattr(self._batches, "parts", ())
        return tuple(
            Blended(one, self._share, self._preprocessing, self._seed + place) for place, one in enumerate(found, 1)
        )

    def __len__(self) -> int:
        """Batches per pass."""
        return len(self._batches)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Chooses the order of the next passes; what is blended, and how, depends on the place in a pass alone."""
        self._batches.set_epoch(epoch, done)

    def set_shard(self, rank: int, world: int) -> None:
        """Restricts the passes to this process's share."""
        self._batches.set_shard(rank, world)

    def identity(self) -> str:
        """The batches', and what is done to them."""
        return f"{self._batches.identity()}-blended-{self._share:g}-{self._seed}"

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + 7919)
        for images, labels in self._batches:
            yield self._mixed(images, generator), labels

    def _mixed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        from torchvision.transforms.v2.functional import normalize

        count, channels, height, width = images.shape
        chosen = torch.rand(count, 1, 1, 1, generator=generator) < self._share
        weight = torch.where(chosen, torch.rand(count, 1, 1, 1, generator=generator), 0.0)
        noise = colour_noise(count, channels, (height, width), generator)
        noise = normalize(noise, list(self._preprocessing.mean), list(self._preprocessing.std))
        return torch.lerp(images, noise.to(images), weight.to(images))


def blended(batches: Batches, share: float, preprocessing: Preprocessing, seed: int = 0) -> Batches:
    """The batches, or for a share above 0 `Blended` ones. Raises DataError for a share outside of 0..1."""
    found = Blended(batches, share, preprocessing, seed)
    return found if share else batches
