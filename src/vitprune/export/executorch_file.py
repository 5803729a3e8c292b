"""ExecuTorch programs with XNNPACK, for phones and boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from vitprune.export.capture import capture, first_line, name_of, quiet
from vitprune.export.errors import ExportError
from vitprune.export.types import Format, FormatInfo, Job, Runner

FILE = "model.pte"


def write(job: Job, folder: Path) -> None:
    """model.pte in `folder`, as much of it as XNNPACK takes delegated to it.

    Raises ExportError when ExecuTorch cannot translate the model.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = capture(job)
    try:
        with quiet():
            if job.quantize:
                program = _quantized(program, job)
            made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            with (folder / FILE).open("wb") as file:
                made.write_to_file(file)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"ExecuTorch cannot translate {name_of(job.model)}: {first_line(error)}") from error


def _quantized(program: torch.export.ExportedProgram, job: Job) -> torch.export.ExportedProgram:
    """The program with 8-bit linear layers, weights per channel; everything else stays in float32."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dynamic = job.quantize == "int8-dynamic"
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, config)
    prepared = prepare_pt2e(program.module(), quantizer)
    example = program.example_inputs
    assert example is not None
    with torch.no_grad():
        for batch in job.calibration:
            prepared(torch.from_numpy(batch))
        if dynamic:
            prepared(*example[0])  # the ranges of the weights are noted in passing
    free = None if job.batch else ({0: torch.export.Dim("batch", min=1)},)
    return torch.export.export(convert_pt2e(prepared), example[0], dynamic_shapes=free, strict=False)


def run(folder: Path, threads: int) -> Runner:
    """The program in ExecuTorch's runtime, with so many threads of its pool."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    with quiet():
        _unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(folder / FILE)
        method = program.load_method("forward")

    def runner(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = method.execute([torch.from_numpy(images)])[0].numpy()
        return scores

    return runner


INFO = FormatInfo(
    "executorch",
    "ExecuTorch program with XNNPACK, for phones and boards",
    FILE,
    extra="executorch",
    packages=("executorch", "torchao"),
    int8=("int8", "int8-dynamic"),
    batch=1,
)
FORMAT = Format(INFO, write, run)
