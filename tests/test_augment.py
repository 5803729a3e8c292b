"""What augmentation does to images, by hand, and that seeds alone decide it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_parts import GREY, RGB, collect, write_fashion, write_folder
from vitprune.data import AugmentSettings, open_data
from vitprune.data.augment import erase, flip, shift
from vitprune.data.images import make_transform
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing


def test_augmentations_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(64, 1, 1, 1) + 1
    flipped = flip(x, generator)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert 16 < int(mirrored.sum()) < 48 and bool((flipped == x).flatten(1).all(1)[~mirrored].all())
    moved = shift(x, 1, generator)
    padded = torch.nn.functional.pad(x[0, 0], (1, 1, 1, 1))
    crops = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    found = {next(k for k, c in enumerate(crops) if torch.equal(c, m[0])) for m in moved}
    assert found == set(range(9))
    gone = erase(x.repeat(1, 1, 8, 8), 1.0, generator)
    shares = (gone == 0).float().mean((1, 2, 3))
    assert float(shares.min()) > 0.01 and float(shares.max()) < 0.3
    assert torch.equal(erase(x, 0.0, generator), x)


def test_erased_rectangles_may_hold_noise() -> None:
    x = torch.full((32, 3, 16, 16), 5.0)
    plain = erase(x, 1.0, torch.Generator().manual_seed(1))
    noisy = erase(x, 1.0, torch.Generator().manual_seed(1), noise=True)
    assert torch.equal(plain == 0, noisy != 5)  # the same places
    values = noisy[noisy != 5]
    assert abs(float(values.mean())) < 0.1 and float(values.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prep", [RGB, GREY], ids=["colour", "grey"])
def test_randaugment_depends_on_the_seed_alone(tmp_path: Path, prep: Preprocessing) -> None:
    write_folder(tmp_path)
    plain = AugmentSettings(flip=False)
    results = []
    for magnitude, seed in ((9.0, 0), (9.0, 0), (9.0, 1), (0.0, 0)):
        augment = replace(plain, randaugment=magnitude)
        data = open_data(str(tmp_path), prep, augment=augment, batch_size=4, val_fraction=0.3, seed=0)
        data.train._order.seed = seed  # the draws alone, not the split
        data.train._order.shuffle = False
        random.seed(len(results))
        results.append((collect(data.train)[0], random.random()))
    (a, _), (b, after), (c, _), (d, _) = results
    assert torch.equal(a, b) and not torch.equal(a, c) and not torch.equal(a, d)
    assert after == random.Random(1).random()  # other users of Python's generator notice nothing
    with pytest.raises(DataError, match=r"randaugment must be a magnitude in 0..10, but got 11"):
        AugmentSettings(randaugment=11)


def test_randaugment_at_its_largest_magnitude() -> None:
    transform = make_transform(RGB, AugmentSettings(randaugment=10.0))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    random.seed(0)
    assert all(bool(torch.isfinite(transform(image)).all()) for _ in range(150))


def test_what_does_not_apply_to_images_in_memory_is_said(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = open_data(f"fashion-mnist:{tmp_path}", GREY, augment=AugmentSettings(randaugment=9, hue=0.1))
    assert any("hue, randaugment are for image files and not applied" in note for note in data.notes)
