"""What a transformers folder or hub repository says of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitprune.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, fit_channels

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def read_preprocessing(name: str, config: Any) -> tuple[Preprocessing, tuple[str, ...]]:
    """From preprocessor_config.json where there is one, else the configuration's size and ImageNet's norm."""
    vision = getattr(config, "vision_config", config)
    channels = int(getattr(vision, "num_channels", 3))
    image_size = getattr(vision, "image_size", 224)
    built = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    saved = _processor(name)
    if saved is None:
        mean, std = fit_channels(IMAGENET_MEAN, channels), fit_channels(IMAGENET_STD, channels)
        note = f"{name} has no preprocessor_config.json: ImageNet's mean and std are assumed"
        return Preprocessing((int(built[0]), int(built[1])), mean, std, "bicubic", channels), (note,)
    size, crop = saved.get("size"), saved.get("crop_size") if saved.get("do_center_crop") else None
    height, width = _sides(crop) or _sides(size) or built
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    squash = shortest is None and crop is None
    crop_pct = min(1.0, height / float(shortest)) if shortest and crop else 1.0
    return Preprocessing(
        size=(int(height), int(width)),
        mean=fit_channels(saved.get("image_mean") or IMAGENET_MEAN, channels),
        std=fit_channels(saved.get("image_std") or IMAGENET_STD, channels),
        interpolation=RESAMPLE.get(int(saved.get("resample", 3)), "bicubic"),
        channels=channels,
        crop_pct=crop_pct,
        crop_mode="squash" if squash else "center",
    ), ()


def _processor(name: str) -> Mapping[str, Any] | None:
    from transformers.image_processing_base import ImageProcessingMixin

    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(str(folder) if folder.is_dir() else name)
    except Exception:  # not every hub model has one; the note says what is assumed instead
        return None
    return dict(fields)


def _sides(value: object) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    if isinstance(value, Sequence) and len(value) == 2:
        return int(value[0]), int(value[1])
    return None
