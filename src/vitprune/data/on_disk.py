"""A folder that Hugging Face datasets saved with save_to_disk: datasets:DIR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vitprune.errors import DataError

SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The images of one split, decoded when opened."""

    rows: Any  # a datasets.Dataset
    image: str  # the column of images
    labels: Sequence[int]
    where: str

    def open(self, index: int) -> Image.Image:
        """The decoded image of a row. Raises DataError naming a row that cannot be decoded."""
        try:
            image = self.rows[int(index)][self.image]
            image.load()
        except (OSError, SyntaxError, ValueError, AttributeError) as error:
            raise DataError(f"{self.where}: row {index} holds no whole image ({error})") from error
        result: Image.Image = image
        return result


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def read_tables(folder: Path) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Split name -> table, and the class names. Raises DataError without one image and one class label column."""
    try:
        from datasets import ClassLabel, DatasetDict, load_from_disk
        from datasets import Image as ImageFeature
    except ImportError as error:
        raise DataError(f"reading {folder} needs the package datasets: pip install 'vitprune[datasets]'") from error
    if not is_saved(folder):
        raise DataError(f"{folder} was not written by datasets' save_to_disk: it has no dataset_info.json")
    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"datasets could not read {folder}: {error}") from error
    parts = dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}
    tables: dict[str, Table] = {}
    classes: tuple[str, ...] = ()
    for split, names in SPLITS.items():
        rows = next((parts[n] for n in names if n in parts), None)
        if rows is None:
            continue
        images = [k for k, v in rows.features.items() if isinstance(v, ImageFeature)]
        labels = [k for k, v in rows.features.items() if isinstance(v, ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            raise DataError(f"{folder} ({split}) needs one image and one class label column: {images}, {labels}")
        classes = classes or tuple(rows.features[labels[0]].names)
        if tuple(rows.features[labels[0]].names) != classes:
            raise DataError(f"the splits of {folder} have different classes")
        tables[split] = Table(rows, images[0], list(rows[labels[0]]), f"{folder} ({split})")
    if "train" not in tables:
        raise DataError(f"{folder} has no split named train, but {', '.join(parts)}")
    return tables, classes
