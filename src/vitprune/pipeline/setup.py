"""A model and the data it is trained and measured on, made to fit each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitprune.data import AugmentSettings, Data, blended, open_data, open_domains
from vitprune.data.domain_split import FRACTION
from vitprune.data.domains import Held
from vitprune.data.open_domains import LeftOut, chosen_augment, leave_out
from vitprune.errors import DataError, ModelError
from vitprune.pipeline.opening import Opened, open_model
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Progress
from vitprune.recover import TrainSettings


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which images, and how they are read."""

    spec: str  # the DATA argument
    limit: int | None = None  # at most so many images per split
    val_fraction: float = 0.1
    workers: int = 0
    repeat_channels: bool = False  # one-channel image files for a three-channel model
    val_images: int | None = None  # at most so many validation images
    separate_test: bool = False  # accuracy is reported on images that nothing was chosen by; see `open_data`


@dataclass(frozen=True, slots=True)
class DomainSettings(DataSettings):
    """Which domains; `limit` is of images per domain, and training knows nothing of those that are held out."""

    val_fraction: float = FRACTION
    held_out: Held = ()
    augment: str = "auto"  # of `data.open_domains.AUGMENTS`

    def open(self, preprocessing: Preprocessing, *, seed: int = 0, batch_size: int = 64, **more: Any) -> LeftOut:
        """The batches for a model; arguments and errors are those of `leave_out`."""
        found = open_domains(self.spec, limit=self.limit)
        how: dict[str, Any] = {"val_fraction": self.val_fraction, "workers": self.workers, **more}
        how["augment"] = chosen_augment(found, self.augment)
        return leave_out(found, self.held_out, preprocessing, seed=seed, batch_size=batch_size, **how)


def resolve_device(device: str) -> str:
    """ "auto" as "cuda" where there is one, else "cpu"; other names as they are.

    Raises ModelError when the device cannot be used.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used: {reason}; choose cpu or auto") from error
    return device


def open_both(
    spec: str,
    wanted: DataSettings,
    training: TrainSettings,
    *,
    device: str,
    progress: Progress,
    new_head: bool = False,
    weights: bool = True,
    allow_module: str | None = None,
    calibration: int = 0,
    blend: float = 0.0,
) -> tuple[Opened, Data]:
    """The model on `device`, and data with its preprocessing, whose class count is that of its head.

    new_head: give the model a head for the classes of the data. calibration: see `open_data`.
    blend: share of the calibration images that `Blended` changes.

    Raises ModelError, DataError or StoreError when one cannot be had or they do not fit.
    """
    seed = training.seed
    opened = open_model(spec, weights=weights, device=device, seed=seed, allow_module=allow_module)
    preprocessing = opened.loaded.preprocessing
    if isinstance(wanted, DomainSettings):
        data = wanted.open(
            preprocessing, seed=seed, batch_size=training.batch_size, device=device, calibration=calibration
        ).data
    else:
        data = open_data(
            wanted.spec,
            preprocessing,
            seed=seed,
            val_fraction=wanted.val_fraction,
            batch_size=training.batch_size,
            workers=wanted.workers,
            augment=AugmentSettings.from_json(training.to_json()),
            limit=wanted.limit,
            device=device,
            repeat_channels=wanted.repeat_channels,
            calibration=calibration,
            val_images=wanted.val_images,
            separate_test=wanted.separate_test,
        )
    classes = len(data.classes)
    if classes != opened.loaded.num_classes:
        if not new_head:
            has = f"a head of {opened.loaded.num_classes}" if opened.loaded.num_classes else "no classifier"
            raise DataError(
                f"{wanted.spec} has {classes} classes, but the model has {has}; give --new-head for a head of "
                f"{classes}, or data with the model's own classes"
            )
        opened = open_model(
            spec, num_classes=classes, weights=weights, device=device, seed=seed, allow_module=allow_module
        )
    if blend:
        if data.calibration is None:
            raise DataError(f"blend changes calibration images, but got {blend:g} and none; give --calibration, too")
        data = replace(data, calibration=blended(data.calibration, blend, opened.loaded.preprocessing, seed))
    for note in (*opened.loaded.notes, *data.notes):
        progress.line(f"note: {note}")
    return opened, data
