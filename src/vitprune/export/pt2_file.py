"""torch.export archives: loaded by torch.export.load, by AOTInductor, and by C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from vitprune.export.capture import capture, metadata, quiet
from vitprune.export.types import Format, FormatInfo, Job, Runner

FILE = "model.pt2"
META = "vitprune.json"  # among the extra files of the archive


def write(job: Job, folder: Path) -> None:
    """model.pt2 in `folder`, with the metadata as its extra file vitprune.json."""
    program = capture(job)
    with quiet():
        torch.export.save(program, folder / FILE, extra_files={META: metadata(job)})


def run(folder: Path, threads: int) -> Runner:
    """The archive in this process's torch, with torch's own number of threads."""
    with quiet():
        module = torch.export.load(folder / FILE).module()

    def runner(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.no_grad():
            scores: npt.NDArray[Any] = module(torch.from_numpy(images)).numpy()
        return scores

    return runner


FORMAT = Format(FormatInfo("pt2", "torch.export archive, for PyTorch without the model's source", FILE), write, run)
