"""Folders of images: classes, splits, channels, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_parts import GREY, RGB, collect, write_folder
from vitprune.data import AugmentSettings, open_data
from vitprune.errors import DataError


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folder_is_the_same_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path)
    settings = AugmentSettings(flip=True, crop_padding=4, erasing=0.5, color_jitter=0.3, resized_crop=0.5)
    here = open_data(str(tmp_path), RGB, augment=settings, batch_size=4, val_fraction=0.3)
    there = open_data(str(tmp_path), RGB, augment=settings, batch_size=4, val_fraction=0.3, workers=workers)
    assert (here.train.size, here.val.size, here.classes, here.test) == (8, 4, ("cat", "dog"), None)
    here.train.set_epoch(2)
    there.train.set_epoch(2)
    a, b = collect(here.train), collect(there.train)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[0].shape == (8, 3, 16, 16)


def test_image_folder_with_splits(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 3), ("test", 2)):
        write_folder(tmp_path, per_class=count, sub=split)
    data = open_data(str(tmp_path), RGB, limit=6)
    assert data.test is not None and (data.train.size, data.val.size, data.test.size) == (6, 6, 4)
    images, labels = collect(data.val)
    red = (images[:, 0] * 0.5 + 0.5).mean((1, 2)) * 255
    assert torch.allclose(red.round(), torch.tensor([40.0, 41, 42, 190, 191, 192]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_colour_images_for_a_grey_model(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert collect(open_data(str(tmp_path), GREY).val)[0].shape[1:] == (1, 28, 28)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path, per_class=40, sub="train")
    write_folder(tmp_path, per_class=2, sub="val")
    path = tmp_path / "val" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    data = open_data(str(tmp_path), RGB, workers=workers)
    with pytest.raises(DataError, match=r"val/dog/1.png is no whole image \(.*\); fetch it again or remove it$"):
        list(data.val)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"val/dog/1.png is no whole image"):
        list(data.val)


def test_one_channel_files_need_a_word(tmp_path: Path) -> None:
    write_folder(tmp_path, "L")
    with pytest.raises(DataError, match="one-channel images, but the model takes 3 channels"):
        open_data(str(tmp_path), RGB)
    data = open_data(str(tmp_path), RGB, repeat_channels=True)
    assert "repeated" in data.notes[0]
    assert collect(data.val)[0].shape[1] == 3


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DATA must be one of .* no folder"):
        open_data(str(tmp_path / "gone"), RGB)
    with pytest.raises(DataError, match="has no class folders"):
        open_data(str(tmp_path), RGB)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="has no images of cat"):
        open_data(str(tmp_path), RGB)
    write_folder(tmp_path / "b", sub="train")
    write_folder(tmp_path / "b", sub="val")
    (tmp_path / "b" / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="classes that .* has not: bird"):
        open_data(str(tmp_path / "b"), RGB)
    write_folder(tmp_path / "c", sub="val")
    with pytest.raises(DataError, match="has no train/"):
        open_data(str(tmp_path / "c"), RGB)


def test_class_count_must_fit_the_head(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(DataError, match="2 classes, but the model's head has 10"):
        open_data(str(tmp_path), RGB, num_classes=10)
    with pytest.raises(DataError, match="10 classes, but the model's head has 1000"):
        open_data("fashion-mnist-sample", GREY, num_classes=1000)


def test_calibration_images_of_a_folder_come_mixed(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path, per_class=20))
    data = open_data(root, RGB, batch_size=8, calibration=24)
    assert data.calibration is not None
    first, labels = next(iter(data.calibration))
    assert len(first) == 8 and set(labels.tolist()) == {0, 1}, "the first images of a class alone would mislead"
    everything = collect(data.calibration)[1]
    assert len(everything) == 24 and int(everything.sum()) == 12
    again = open_data(root, RGB, batch_size=8, calibration=24).calibration
    assert again is not None and torch.equal(collect(again)[1], everything)
