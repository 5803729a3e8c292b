"""Which class a model gave every test image, beside the images' own classes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitprune.report.paired import Hits

Classes = npt.NDArray[np.int64]  # (n,) class indices


@dataclass(frozen=True, slots=True)
class Answers:
    """The class that a model gave every test image; the classes are unsigned little-endian integers of 1 to 4 bytes."""

    images: str  # equal texts: the same images in the same order
    n: int
    labels: bytes = field(repr=False)  # the images' own classes
    predicted: bytes = field(repr=False)

    @classmethod
    def of(cls, images: str, labels: Classes, predicted: Classes) -> Answers:
        """From (n,) class indices each, in as few bytes as hold them."""
        assert len(labels) == len(predicted)
        largest = max(int(labels.max(initial=0)), int(predicted.max(initial=0)))
        kind = np.dtype(np.min_scalar_type(largest)).newbyteorder("<")
        return cls(images, len(labels), labels.astype(kind).tobytes(), predicted.astype(kind).tobytes())

    def arrays(self) -> tuple[Classes, Classes]:
        """The images' own classes and those that the model gave, (n,) each. Raises ValueError for other lengths."""
        return self._array(self.labels), self._array(self.predicted)

    def _array(self, content: bytes) -> Classes:
        width, rest = divmod(len(content), max(self.n, 1))
        if rest or width not in (1, 2, 4):
            raise ValueError(f"{len(content)} bytes are no classes of {self.n} images")
        return np.frombuffer(content, f"<u{width}").astype(np.int64)

    def hits(self) -> Hits:
        """Which images the model was right about."""
        labels, predicted = self.arrays()
        return Hits(self.images, self.n, np.packbits(labels == predicted).tobytes())

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the classes in base64."""
        texts = {"labels": self.labels, "predicted": self.predicted}
        return {"images": self.images, "n": self.n} | {k: base64.b64encode(v).decode() for k, v in texts.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Answers:
        """The value that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        found = cls(fields["images"], int(fields["n"]), *(base64.b64decode(fields[k]) for k in ("labels", "predicted")))
        found.arrays()
        return found
