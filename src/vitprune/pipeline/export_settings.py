"""How a model is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitprune.export import ExportError, Parity

HUB = "hf"  # the format that is a saved folder


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What is made, how it is judged, and how it is timed."""

    format: str = "onnx"  # a key of `vitprune.export.FORMATS`, or "hf"
    quantize: str | None = None  # "int8", "int8-dynamic", or float32
    batch: int | None = None  # images per call; None: the format's own, which is any number but for executorch
    images: int = 1000  # validation images, balanced over the classes, that it is compared on; 0: all
    calibration: int = 256  # training images that static int8 takes its ranges from
    max_drop: float = 1.0  # points of top-1 that a quantized file may lose on those validation images
    latency_batches: tuple[int, ...] = (1, 8)  # () leaves the timing out
    compile: bool = True  # time torch.compile too
    threads: int | None = None  # of the CPU, for timing and the runtimes; None: torch's number

    def __post_init__(self) -> None:
        limits = {"images": (self.images, 0), "calibration": (self.calibration, 1), "max_drop": (self.max_drop, 0)}
        limits |= {"batch": (1 if self.batch is None else self.batch, 1), "threads": (self.threads or 1, 1)}
        limits |= {"latency_batches": (min(self.latency_batches, default=1), 1)}
        for name, (value, least) in limits.items():
            if not value >= least:
                raise ExportError(f"{name} must be at least {least}, but got {value:g}")

    @property
    def precision(self) -> str:
        """Of what is made: float32 or the way of quantization."""
        return self.quantize or "float32"


@dataclass(frozen=True, slots=True)
class Card:
    """What the model card of a shared folder says beyond what the folder knows by itself."""

    repo: str | None = None  # OWNER/NAME on the hub
    license: str | None = None  # an identifier such as apache-2.0
    base_model: str | None = None  # OWNER/NAME of the dense model on the hub


@dataclass(frozen=True, slots=True)
class Speed:
    """Wall-clock time of one forward pass, all rows of one batch size measured in turns."""

    model: str  # "dense", "pruned", or "model" where there is no dense twin
    by: str  # "eager", "compile", or the format and precision
    batch: int
    median_ms: float  # of the whole batch
    p10_ms: float
    p90_ms: float
    threads: int


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was made, and how it compares with the model."""

    out: Path
    file: str  # in `out`; "" for the folder itself
    format: str
    precision: str
    batch: int | None  # images per call; None: any number
    bytes: int  # of all files
    parity: Parity
    compared_on: str
    speed: tuple[Speed, ...] = ()
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] | None = None  # preprocessing, classes, versions

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"out": str(self.out), "parity": self.parity.to_json()}
