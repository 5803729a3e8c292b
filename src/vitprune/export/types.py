"""What a format is, what it is written from, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from torch import nn

from vitprune.preprocessing import Preprocessing

Quantization = Literal["int8", "int8-dynamic"]
Runner = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]  # float32 images (B, C, H, W) -> float32 class scores (B, K)


@dataclass(frozen=True, slots=True)
class FormatInfo:
    """What there is to know of a format before anything is made."""

    name: str
    summary: str  # one line
    file: str  # the file in the folder that the runtime opens; "" where it opens the folder
    extra: str = ""  # of pyproject.toml, with the packages that it needs; "" for none
    packages: tuple[str, ...] = ()  # modules of that extra that must be there
    int8: tuple[Quantization, ...] = ()  # ways of quantization that it has
    batch: int | None = None  # images per call unless another number is asked for; None: any number
    tolerance: float = 1e-3  # of float32: largest difference of a score, as a share of the largest score


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What is to be written."""

    model: nn.Module  # on the CPU, float32
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()  # in the order of the scores; () when unknown
    batch: int | None = None  # images per call; None: any number
    quantize: Quantization | None = None
    calibration: tuple[
        npt.NDArray[Any], ...
    ] = ()  # float32 (B, C, H, W) each, B = batch if it is set: ranges of static int8


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how its files are made, and how they are run."""

    info: FormatInfo
    write: Callable[[Job, Path], None]  # the job, a folder that is there and empty
    open: Callable[[Path, int], Runner]  # the folder, CPU threads
