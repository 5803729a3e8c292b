"""A model as torch.export captures it: images in, class scores out, any number of images or a fixed one."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

import vitprune
from vitprune.export.errors import ExportError
from vitprune.export.types import Job
from vitprune.models.loaded import example, logits
from vitprune.modes import evaluating

INPUT, OUTPUT = "images", "scores"
NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._export", "root", "onnxruntime")


class ClassScores(nn.Module):
    """The model, giving its class scores alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return logits(self.model(images))


def capture(job: Job) -> torch.export.ExportedProgram:
    """The program of the job's model, of one input `images`, for `job.batch` images or for any number.

    Raises ExportError when the model cannot be captured so.
    """
    images = example(job.preprocessing, batch=job.batch or 4)
    free = None if job.batch else ({0: torch.export.Dim("batch", min=1)},)
    whole = ClassScores(job.model)
    with quiet(), torch.no_grad(), evaluating(whole):
        try:
            program = torch.export.export(whole, (images,), dynamic_shapes=free, strict=False)
        except Exception as error:
            advice = "" if job.batch else "; a fixed batch size may do: --batch 1"
            raise ExportError(
                f"torch.export cannot capture {name_of(job.model)}: {first_line(error)}{advice}"
            ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which files would carry along
    return program


def metadata(job: Job) -> str:
    """What a user of the file must know, as JSON: input and output, preprocessing, classes."""
    fields: dict[str, Any] = {
        "producer": f"vitprune {vitprune.__version__}",
        "input": {"name": INPUT, "shape": [job.batch, job.preprocessing.channels, *job.preprocessing.size]},
        "output": {"name": OUTPUT, "meaning": "class scores before softmax"},
        "precision": job.quantize or "float32",
        "preprocessing": job.preprocessing.to_json(),
        "classes": list(job.classes),
    }
    return json.dumps(fields)


def name_of(model: nn.Module) -> str:
    """The model's class."""
    return type(model).__name__


def first_line(error: Exception) -> str:
    """What an exporter says, in one line of at most 300 letters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters meanwhile, and what they print: what counts is compared afterwards."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
