"""Image folders: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg split by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitprune.data.images import Files
from vitprune.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Folder:
    """The splits that a folder has; "val" is absent when it must be split off."""

    classes: tuple[str, ...]
    splits: dict[str, Files]


def read_folder(root: Path) -> Folder:
    """The image files and classes of a folder. Raises DataError when there are no class folders or no images."""
    places = {split: _find(root, names) for split, names in NAMES.items()}
    if places["train"] is None:
        if places["val"] is not None or places["test"] is not None:
            raise DataError(f"{root} has no train/ beside its {places['val'] or places['test']}")
        classes = _classes(root)
        return Folder(classes, {"train": _files(root, classes)})
    classes = _classes(places["train"])
    splits: dict[str, Files] = {}
    for split, place in places.items():
        if place is None:
            continue
        unknown = sorted(set(_classes(place)) - set(classes))
        if unknown:
            raise DataError(f"{place} has classes that {places['train']} has not: {', '.join(unknown[:5])}")
        splits[split] = _files(place, classes)
    return Folder(classes, splits)


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / n for n in names if (root / n).is_dir()), None)


def _classes(place: Path) -> tuple[str, ...]:
    classes = tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not classes:
        raise DataError(
            f"{place} has no class folders; images are expected as {place}/CLASS/*.jpg, or in train/CLASS and val/CLASS"
        )
    return classes


def class_files(place: Path, classes: Sequence[str]) -> tuple[Files, list[str]]:
    """The images below PLACE/CLASS, and the classes without any."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(p) for p in (place / name).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        paths += found
        labels += [label] * len(found)
    return Files(tuple(paths), tuple(labels)), [classes[i] for i in sorted(set(range(len(classes))) - set(labels))]


def _files(place: Path, classes: tuple[str, ...]) -> Files:
    files, empty = class_files(place, classes)
    if not files.paths or (empty and place.name in NAMES["train"]):
        raise DataError(f"{place} has no images of {', '.join(empty[:5])} (looked for {', '.join(EXTENSIONS)})")
    return files
