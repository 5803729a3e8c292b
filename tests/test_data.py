"""Data sets: splits, determinism, preprocessing, and what is wrong with bad ones."""

from __future__ import annotations

import gzip
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from vitprune.data import AugmentSettings, Batches, TensorBatches, open_data
from vitprune.data import idx as idx_module
from vitprune.data.augment import erase, flip, shift
from vitprune.data.images import make_transform
from vitprune.data.split import balanced_subset, stratified_split
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing

GREY = Preprocessing((28, 28), (0.25,), (0.5,), "bilinear", 1)
RGB = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 3)
AUGMENT = AugmentSettings(flip=True, crop_padding=4, erasing=0.5)


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of bytes."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, train: int = 60, test: int = 20) -> None:
    """A tiny set in Fashion-MNIST's four files; every image is filled with 10 times its label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.repeat(labels * 10, 28 * 28).reshape(count, 28, 28)
        for name, array in zip(idx_module.FILES[split], (images, labels), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


def write_folder(root: Path, mode: str = "RGB", per_class: int = 6, sub: str = "") -> Path:
    """An image folder of two classes, cat (dark) and dog (bright)."""
    for label, name in enumerate(("cat", "dog")):
        (root / sub / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            level = 40 + 150 * label + i
            colour = level if mode == "L" else (level, level // 2, 0)
            Image.new(mode, (20, 24), colour).save(root / sub / name / f"{i}.png")
    return root


def collect(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels of one pass."""
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_split_is_stratified_and_seeded() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 2 + [3]
    rest, chosen = stratified_split(labels, 0.1, seed=3)
    assert sorted([*rest, *chosen]) == list(range(83))
    assert [sum(labels[i] == c for i in chosen) for c in range(4)] == [5, 3, 1, 0]
    assert np.array_equal(chosen, stratified_split(labels, 0.1, seed=3)[1])
    assert not np.array_equal(chosen, stratified_split(labels, 0.1, seed=4)[1])
    with pytest.raises(DataError, match="between 0 and 1, but got 1.5"):
        stratified_split(labels, 1.5, 0)


def test_limit_is_balanced() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 3
    taken = balanced_subset(labels, 12, seed=0)
    assert [sum(labels[i] == c for i in taken) for c in range(3)] in ([5, 4, 3], [4, 5, 3])
    assert len(balanced_subset(labels, None, 0)) == len(balanced_subset(labels, 999, 0)) == 83
    with pytest.raises(DataError, match="at least 1"):
        balanced_subset(labels, 0, 0)


def test_fashion_mnist_from_a_folder(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = open_data(f"fashion-mnist:{tmp_path}", GREY, batch_size=9, num_classes=10)
    assert (data.train.size, data.val.size, len(data.classes), data.notes) == (50, 10, 10, ())
    assert data.test is not None and data.test.size == 20
    images, labels = collect(data.val)
    assert images.shape == (10, 1, 28, 28) and images.dtype == torch.float32 and labels.dtype == torch.int64
    expected = (labels.float() * 10 / 255 - 0.25) / 0.5
    assert torch.allclose(images.amin((1, 2, 3)), expected, atol=1e-6)
    assert torch.allclose(images.amax((1, 2, 3)), expected, atol=1e-6)
    assert len(data.train) == 5 and collect(data.train)[0].shape[0] == 45  # the last, smaller batch is dropped


def test_one_channel_arrays_are_repeated_resized_and_it_is_said(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    data = open_data(f"fashion-mnist:{tmp_path}", RGB)
    images, _ = collect(data.val)
    assert images.shape == (10, 3, 16, 16) and torch.equal(images[:, 0], images[:, 2])
    assert "repeated for 3" in data.notes[0] and "resized to (16, 16)" in data.notes[1]


def test_shipped_sample_is_real_and_balanced() -> None:
    data = open_data("fashion-mnist-sample", GREY, seed=1)
    assert data.test is not None
    assert (data.train.size, data.val.size, data.test.size) == (5400, 600, 1000)
    images, labels = collect(data.test)
    assert torch.equal(labels.bincount(), torch.full((10,), 100))
    shares = images * 0.5 + 0.25
    assert 0.27 < float(shares.mean()) < 0.30 and 0.34 < float(shares.std()) < 0.37


def test_fashion_mnist_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx_module, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_fashion(tmp_path / "cache" / "vitprune" / "fashion-mnist" / "FashionMNIST" / "raw")
    assert idx_module.find_fashion_mnist().name == "raw"
    write_fashion(tmp_path / "debian")
    assert idx_module.find_fashion_mnist() == tmp_path / "debian"
    with pytest.raises(DataError, match="no Fashion-MNIST in .*train-images-idx3-ubyte"):
        idx_module.find_fashion_mnist(str(tmp_path / "empty"))


def test_no_network_gives_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(idx_module, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    with pytest.raises(DataError, match="could not be downloaded .no route to host.*fashion-mnist-sample"):
        open_data("fashion-mnist", GREY)


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is damaged or truncated"):
        open_data(f"fashion-mnist:{tmp_path}", GREY)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is no whole IDX file"):
        open_data(f"fashion-mnist:{tmp_path}", GREY)
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((3, 28, 28), np.uint8))))
    with pytest.raises(DataError, match="do not fit"):
        open_data(f"fashion-mnist:{tmp_path}", GREY)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    make = lambda seed: open_data(f"fashion-mnist:{tmp_path}", GREY, seed=seed, augment=AUGMENT, batch_size=10).train  # noqa: E731
    a, b, c = make(0), make(0), make(1)
    first = collect(a)
    torch.manual_seed(99)
    assert all(torch.equal(x, y) for x, y in zip(first, collect(b), strict=True))
    assert not torch.equal(first[1], collect(c)[1])
    a.set_epoch(1)
    second = collect(a)
    assert not torch.equal(first[1], second[1])
    a.set_epoch(0)
    assert torch.equal(first[0], collect(a)[0])


def test_shards_are_disjoint_and_even() -> None:
    images, labels = torch.zeros(23, 1, 28, 28, dtype=torch.uint8), torch.arange(23)
    seen = []
    for rank in range(2):
        batches = TensorBatches(images, labels, GREY, batch_size=5, shuffle=True)
        batches.set_shard(rank, 2)
        assert len(batches) == 2
        seen += collect(batches)[1].tolist()
    assert len(set(seen)) == len(seen) == 20
    whole = []
    for rank in range(2):
        batches = TensorBatches(images, labels, GREY, batch_size=5, shuffle=False)
        batches.set_shard(rank, 2)
        assert len(list(batches)) == len(batches)
        whole += collect(batches)[1].tolist()
    assert sorted(whole) == list(range(23))


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


def test_a_pass_may_leave_out_batches_that_were_had_before(tmp_path: Path) -> None:
    write_folder(tmp_path / "files")
    write_fashion(tmp_path / "idx")
    augment = AugmentSettings(flip=True, crop_padding=4, erasing=0.5)
    for spec, prep in ((str(tmp_path / "files"), RGB), (f"fashion-mnist:{tmp_path / 'idx'}", GREY)):
        train = open_data(spec, prep, augment=augment, batch_size=3, val_fraction=0.3).train
        train.set_epoch(1)
        whole = list(train)
        train.set_epoch(1, 1)
        rest = list(train)
        assert len(train) == len(whole) == len(rest) + 1 > 1
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], rest, strict=True))


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


def write_cifar(folder: Path, count: int = 20) -> None:
    """A tiny set in CIFAR-10's binary files."""
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def test_cifar10_binary(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    prep = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    data = open_data(f"cifar10:{tmp_path}", prep, num_classes=10)
    assert data.test is not None and (data.train.size, data.val.size, data.test.size) == (90, 10, 20)
    images, labels = collect(data.test)
    raw = np.fromfile(tmp_path / "test_batch.bin", np.uint8).reshape(-1, 3073)
    assert np.array_equal(((images * 0.5 + 0.5) * 255).round().numpy().astype(np.uint8).reshape(20, -1), raw[:, 1:])
    assert np.array_equal(labels.numpy(), raw[:, 0])
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="data_batch_3.bin is truncated"):
        open_data(f"cifar10:{tmp_path}", prep)


def test_cifar10_pickles_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DataError, match="Python version, whose files are pickles.*binary version"):
        open_data(f"cifar10:{tmp_path}", RGB)


def test_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.new("RGB", (20, 20), (i * 10, 0, 0)) for i in range(10)]
    rows = datasets.Dataset.from_dict({"img": pictures, "label": [i % 2 for i in range(10)]}, features=features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "d"))
    data = open_data(f"datasets:{tmp_path / 'd'}", RGB, val_fraction=0.4)
    assert data.test is not None and (data.train.size, data.val.size, data.test.size) == (6, 4, 10)
    assert data.classes == ("a", "b") and collect(data.test)[0].shape == (10, 3, 16, 16)
    assert open_data(str(tmp_path / "d"), RGB).classes == ("a", "b")
    rows.remove_columns("label").save_to_disk(str(tmp_path / "e"))
    with pytest.raises(DataError, match="one image and one class label column"):
        open_data(f"datasets:{tmp_path / 'e'}", RGB)
    with pytest.raises(DataError, match="save_to_disk"):
        open_data(f"datasets:{tmp_path}", RGB)


def test_settings_out_of_range() -> None:
    with pytest.raises(DataError, match="lie in 0..1"):
        AugmentSettings(erasing=2)
    with pytest.raises(DataError, match="batch size must be at least 1"):
        open_data("fashion-mnist-sample", GREY, batch_size=0)
    assert AugmentSettings.from_json(AUGMENT.to_json()) == AUGMENT


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
