"""Data sets: splits, determinism, preprocessing, and what is wrong with bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_parts import AUGMENT, GREY, RGB, collect, idx_bytes, write_fashion, write_folder
from vitprune.data import AugmentSettings, TensorBatches, open_data
from vitprune.data import idx as idx_module
from vitprune.data.split import balanced_subset, stratified_split
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing


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
