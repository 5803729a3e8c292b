"""From a DATA argument to seeded batches that fit one model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitprune.data.augment import AugmentSettings
from vitprune.data.batches import Data, TensorBatches
from vitprune.data.cifar import CLASSES as CIFAR_CLASSES
from vitprune.data.cifar import read_cifar10
from vitprune.data.folder import read_folder
from vitprune.data.idx import FASHION_CLASSES, Images, find_fashion_mnist, read_split
from vitprune.data.images import LoaderBatches, Store, only_grey
from vitprune.data.on_disk import is_saved, read_tables
from vitprune.data.split import balanced_subset, stratified_split
from vitprune.errors import DataError
from vitprune.preprocessing import Preprocessing

FORMS = (
    "DIR (train/CLASS and val/CLASS, or CLASS folders)",
    *("fashion-mnist[:DIR]", "fashion-mnist-sample", "cifar10:DIR", "datasets:DIR"),
)
LOOKED_AT = 16  # images of a folder whose channels are looked at before training
EVAL_BATCH = 256  # images per validation batch of in-memory data


def open_data(
    spec: str,
    preprocessing: Preprocessing,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    batch_size: int = 64,
    workers: int = 0,
    augment: AugmentSettings | None = None,
    limit: int | None = None,
    num_classes: int | None = None,
    device: str = "cpu",
    repeat_channels: bool = False,
    calibration: int = 0,
    val_images: int | None = None,
    separate_test: bool = False,
) -> Data:
    """The splits of the data set that `spec` names, converted to what `preprocessing` asks for.

    Where a set has no validation images of its own, `val_fraction` of the training images of every class are split
    off, by `seed`. `limit`: at most so many images per split, balanced over the classes. `num_classes`: of the model's
    head; another count is an error. `repeat_channels` lets one-channel image files through to a three-channel model.
    calibration: so many training images, balanced over the classes, are also given without augmentation, in an order
    that is not that of the classes.
    val_images: at most so many validation images, balanced over the classes. separate_test: where a set has no test
    images of its own, its validation images become these, and others are split off from the training images.
    In-memory sets (Fashion-MNIST, CIFAR-10) are prepared and augmented on `device`, image files by `workers` processes.

    Raises:
        DataError: nothing there, no classes, damaged images (at the latest when they are read; names the file),
            one-channel image files for a three-channel model, or a class count that does not fit the head.
    """
    if batch_size < 1 or workers < 0:
        raise DataError(f"batch size must be at least 1 and workers not negative, but got {batch_size} and {workers}")
    maker = _Maker(
        preprocessing,
        seed,
        val_fraction,
        batch_size,
        workers,
        augment,
        limit,
        num_classes,
        device,
        calibration,
        val_images,
        separate_test,
    )
    kind, _, place = spec.partition(":")
    if kind == "fashion-mnist":
        folder = find_fashion_mnist(place or None)
        return maker.in_memory(read_split(folder, "train"), read_split(folder, "test"), FASHION_CLASSES, spec)
    if spec == "fashion-mnist-sample":
        with as_file(files("vitprune") / "assets" / "fmnist_sample") as folder:
            return maker.in_memory(read_split(folder, "train"), read_split(folder, "test"), FASHION_CLASSES, spec)
    if kind == "cifar10":
        root = Path(place).expanduser()
        return maker.in_memory(read_cifar10(root, "train"), read_cifar10(root, "test"), CIFAR_CLASSES, spec)
    root = Path(place if kind == "datasets" else spec).expanduser()
    if not root.is_dir():
        raise DataError(f"DATA must be one of {', '.join(FORMS)}, but there is no folder {root}")
    stores: dict[str, Store]
    if kind == "datasets" or is_saved(root):
        tables, classes = read_tables(root)
        stores = {**tables}
    else:
        folders = read_folder(root)
        classes, stores = folders.classes, {**folders.splits}
    return maker.by_loader(stores, classes, spec, repeat_channels)


class _Maker:
    """Makes the splits of one data set under one set of wishes."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        seed: int,
        val_fraction: float,
        batch_size: int,
        workers: int,
        augment: AugmentSettings | None,
        limit: int | None,
        num_classes: int | None,
        device: str,
        calibration: int,
        val_images: int | None,
        separate_test: bool,
    ) -> None:
        self.val_images, self.separate_test = val_images, separate_test
        self.preprocessing, self.seed, self.val_fraction = preprocessing, seed, val_fraction
        self.batch_size, self.workers, self.augment = batch_size, workers, augment
        self.limit, self.num_classes, self.device, self.calibration = limit, num_classes, device, calibration

    def in_memory(self, train: Images, test: Images, classes: Sequence[str], spec: str) -> Data:
        """Splits of images that are in memory already."""
        self._check(classes, spec)
        rest, chosen = stratified_split(train.labels.numpy(), self.val_fraction, self.seed)
        used = self._limited(train.labels.numpy(), rest)
        some = used[balanced_subset(train.labels.numpy()[used], self.calibration or None, self.seed)]
        return Data(
            self._cut(train, used, training=True),
            self._cut(train, self._validation(train.labels.numpy(), chosen), training=False),
            self._cut(test, balanced_subset(test.labels.numpy(), self.limit, self.seed), training=False),
            tuple(classes),
            self._conversions(train, spec),
            self._cut(train, some, training=False) if self.calibration else None,
        )

    def _cut(self, split: Images, indices: npt.NDArray[np.int64], *, training: bool) -> TensorBatches:
        return TensorBatches(
            split.images[indices],
            split.labels[indices],
            self.preprocessing,
            batch_size=self.batch_size if training else max(EVAL_BATCH, self.batch_size),
            shuffle=training,
            seed=self.seed,
            augment=self.augment if training else None,
            device=self.device,
        )

    def _conversions(self, split: Images, spec: str) -> tuple[str, ...]:
        notes = []
        channels, size = split.images.shape[1], tuple(split.images.shape[-2:])
        if channels != self.preprocessing.channels:
            how = "repeated" if channels == 1 else "turned into their luma"
            notes.append(f"{spec}: {channels}-channel images are {how} for {self.preprocessing.channels} channel(s)")
        if size != self.preprocessing.size:
            notes.append(f"{spec}: images of {size[0]} x {size[1]} are resized to {self.preprocessing.size}")
        wanted = AugmentSettings.none() if self.augment is None else self.augment
        left = [name for name in ("hue", "randaugment") if getattr(wanted, name)]
        if left:
            notes.append(f"{spec}: {', '.join(left)} are for image files and not applied to images in memory")
        return tuple(notes)

    def by_loader(self, stores: dict[str, Store], classes: Sequence[str], spec: str, repeat: bool) -> Data:
        """Splits of images that are decoded when they are needed."""
        self._check(classes, spec)
        train = stores["train"]
        labels = np.asarray(train.labels, dtype=np.int64)
        rng = np.random.default_rng(self.seed)
        looked_at = rng.permutation(len(labels))[:LOOKED_AT]
        notes: tuple[str, ...] = ()
        if only_grey(train, [int(i) for i in looked_at]) and self.preprocessing.channels == 3:
            if not repeat:
                raise DataError(
                    f"{spec} holds one-channel images, but the model takes {self.preprocessing.channels} channels; "
                    "convert the images to RGB, or say that the channel is to be repeated"
                )
            notes = (f"{spec}: one-channel images are repeated for {self.preprocessing.channels} channels",)
        everything = np.arange(len(labels))
        rest, chosen = everything, everything
        own, tested = stores.get("val"), stores.get("test")
        test = None if tested is None else self._load(tested, np.arange(len(tested.labels)), training=False)
        if self.separate_test and tested is None:
            if own is None:
                everything, held = stratified_split(labels, self.val_fraction, self.seed)
                test = self._load(train, held, training=False)
            else:
                test, own = self._load(own, np.arange(len(own.labels)), training=False), None
        if own is None:
            rest, chosen = stratified_split(labels[everything], self.val_fraction, self.seed)
            rest, chosen = everything[rest], everything[chosen]
        validation = train if own is None else own
        if own is not None:
            chosen = np.arange(len(own.labels))
        chosen = self._validation(np.asarray(validation.labels, dtype=np.int64), chosen)
        used = self._limited(labels, rest)
        some = rng.permutation(used[balanced_subset(labels[used], self.calibration or None, self.seed)])
        return Data(
            self._load(train, rest, training=True),
            self._load(validation, chosen, training=False),
            test,
            tuple(classes),
            notes,
            self._load(train, some, training=False) if self.calibration else None,
        )

    def _load(self, store: Store, indices: npt.NDArray[np.int64], *, training: bool) -> LoaderBatches:
        return LoaderBatches(
            store,
            [int(i) for i in self._limited(np.asarray(store.labels, dtype=np.int64), indices)],
            self.preprocessing,
            batch_size=self.batch_size,
            shuffle=training,
            seed=self.seed,
            augment=self.augment if training else None,
            workers=self.workers,
            pin_memory=self.device.startswith("cuda"),
        )

    def _validation(self, labels: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        some = self._limited(labels, indices)
        return some[balanced_subset(labels[some], self.val_images, self.seed)]

    def _limited(self, labels: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return indices[balanced_subset(labels[indices], self.limit, self.seed)]

    def _check(self, classes: Sequence[str], spec: str) -> None:
        if self.num_classes is not None and self.num_classes != len(classes):
            raise DataError(
                f"{spec} has {len(classes)} classes, but the model's head has {self.num_classes}; "
                f"load the model with num_classes={len(classes)} to give it a new head"
            )
