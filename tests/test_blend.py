"""Calibration images that are blended with coloured noise: what is changed, how much, and that it decides a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitprune
from conftest import TINY
from vitprune.allocate.target import Target
from vitprune.data import TensorBatches, blended
from vitprune.data.blend import Blended, colour_noise
from vitprune.data.mixed import Balanced
from vitprune.errors import DataError
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.preprocessing import Preprocessing

PREP = Preprocessing((16, 24), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bilinear", 3)


def grey(count: int = 400, batch: int = 64, level: int = 128) -> TensorBatches:
    """One-coloured images, whose labels are their numbers."""
    images = torch.full((count, 3, 16, 24), level, dtype=torch.uint8)
    return TensorBatches(images, torch.arange(count), PREP, batch_size=batch, shuffle=False)


def pixels(batches: object) -> tuple[Tensor, Tensor]:
    """All images in 0..1, and their labels."""
    found = list(batches)  # type: ignore[call-overload]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREP.mean, PREP.std))
    return torch.cat([x for x, _ in found]) * std + mean, torch.cat([y for _, y in found])


def test_noise_falls_with_the_frequency_at_many_rates() -> None:
    noise = colour_noise(300, 3, (32, 32), torch.Generator().manual_seed(0))
    assert noise.shape == (300, 3, 32, 32) and noise.min() >= 0 and noise.max() <= 1
    power = torch.fft.rfft2(noise - noise.mean((2, 3), keepdim=True)).abs() ** 2
    slow, fast = power[:, :, 0, 1:4].mean((1, 2)), power[:, :, 0, 10:13].mean((1, 2))
    ratio = (slow / fast).sort().values
    assert ratio[30] < 3 and ratio[-30] > 50  # from nearly white to clouds
    means = noise.mean((2, 3))
    assert means.std(0).min() > 0.15  # colours are many, and a channel's says little of another's
    assert torch.corrcoef(means.T).triu(1).abs().max() < 0.3
    assert noise.std((2, 3)).max() < 0.55 and noise.std((2, 3)).min() < 0.05


def test_the_share_of_images_is_blended_and_the_others_stay() -> None:
    plain, _ = pixels(grey())
    mixed, labels = pixels(Blended(grey(), 0.25, PREP))
    changed = (mixed - plain).flatten(1).abs().amax(1) > 1e-5
    assert 70 < int(changed.sum()) < 130 and torch.equal(labels, torch.arange(400))
    assert mixed.min() > -1e-5 and mixed.max() < 1 + 1e-5
    size = (mixed - plain)[changed].flatten(1).abs().mean(1)
    assert size.min() < 0.05 and size.max() > 0.25  # weights from nearly none to nearly all
    every, _ = pixels(Blended(grey(), 1.0, PREP))
    assert ((every - plain).flatten(1).abs().amax(1) > 1e-4).float().mean() > 0.99


def test_every_pass_is_the_same_and_seeds_differ() -> None:
    one = Blended(grey(), 0.5, PREP)
    first, again = pixels(one)[0], pixels(one)[0]
    assert torch.equal(first, again) and not torch.equal(first, pixels(Blended(grey(), 0.5, PREP, seed=1))[0])
    assert (one.size, len(one), one.batch_size) == (400, 7, 64)
    names = {b.identity() for b in (grey(), one, Blended(grey(), 0.4, PREP), Blended(grey(), 0.5, PREP, 1))}
    assert len(names) == 4
    small = grey(20, 4)
    assert blended(small, 0.0, PREP) is small


def test_the_parts_of_domains_are_blended_too() -> None:
    assert Blended(grey(), 0.5, PREP).parts == ()
    both = Blended(Balanced([grey(20, 4), grey(20, 4, level=30)], again=False), 1.0, PREP)
    first, second = (pixels(part)[0] for part in both.parts)
    assert len(first) == len(second) == 20 and not torch.equal(first[0], first[1])
    assert both.parts[0].identity() != both.parts[1].identity()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_beyond_all_images_is_an_error(share: float) -> None:
    with pytest.raises(DataError, match=r"blend is a share of the calibration images, in 0..1, but got"):
        blended(grey(4), share, PREP)


def test_the_settings_of_other_runs_stay_what_they_were() -> None:
    target = Target.parse("macs=0.5")
    assert "blend" not in PruneSettings(target).to_json()
    assert PruneSettings(target, blend=0.5).to_json()["blend"] == 0.5


def test_the_command_line(command, image_folder: Path) -> None:  # type: ignore[no-untyped-def]
    asked = ("prune", TINY, "--data", image_folder, "--device", "cpu", "--epochs", "0", "--round-to", "1", "-q")
    for name, more in (("plain", ()), ("half", ("--blend", "0.5")), ("again", ("--blend", "0.5"))):
        done = command(*asked, *more, "--out", name)
        assert done.code == 0, done.err
    weights = {name: vitprune.load(name).state_dict() for name in ("plain", "half", "again")}
    same = [torch.equal(v, weights["again"][k]) for k, v in weights["half"].items()]
    assert all(same)
    other = weights["plain"]
    assert any(v.shape != other[k].shape or not torch.equal(v, other[k]) for k, v in weights["half"].items())
    assert json.loads(Path("half/metrics.json").read_text())["run"]["prune"]["blend"] == 0.5
    refused = command(*asked, "--blend", "0.5", "--calibration", "0", "--out", "none")
    assert refused.code == 4 and "blend changes calibration images, but got 0.5 and none" in refused.err
    assert command(*asked, "--blend", "1.5", "--out", "none").code == 2 and not Path("none").exists()


def test_what_pruning_forgets_of_images_that_it_never_saw(tmp_path: Path) -> None:
    """A model that knows colours, calibrated on grey images alone: blended ones keep its function on coloured ones."""
    torch.manual_seed(0)
    origin = vitprune.load_model(TINY)
    prep = origin.preprocessing
    grey_images = torch.randint(0, 256, (256, 1, *prep.size), dtype=torch.uint8).expand(-1, 3, -1, -1)
    calibration = TensorBatches(grey_images, torch.zeros(256, dtype=torch.int64), prep, batch_size=64, shuffle=False)
    coloured = next(iter(Blended(calibration, 1.0, prep, seed=5)))[0]
    far = {}
    for name, batches in (("grey", calibration), ("blended", blended(calibration, 0.5, prep))):
        small, _ = vitprune.prune(origin.model, coloured[:1], "macs=0.6", batches=batches, round_to=1)
        with torch.no_grad():
            far[name] = float((small(coloured) - origin.model(coloured)).pow(2).mean())
    assert far["blended"] < 0.7 * far["grey"], far
