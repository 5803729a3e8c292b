"""OpenVINO models, for Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitprune.export import onnx_file
from vitprune.export.capture import first_line, metadata, name_of, quiet
from vitprune.export.errors import ExportError
from vitprune.export.types import Format, FormatInfo, Job, Runner

FILE = "model.xml"  # its weights lie beside it, in model.bin


def write(job: Job, folder: Path) -> None:
    """model.xml and model.bin in `folder`, read from the ONNX file of the same job; no weights are made float16.

    OpenVINO's own converter of torch programs is left alone: it tells Intel of every conversion unless told not to.

    Raises ExportError when OpenVINO cannot read the file.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as work:
        onnx_file.write(job, Path(work))
        try:
            with quiet():
                model = openvino.Core().read_model(Path(work) / onnx_file.FILE)
        except Exception as error:
            raise ExportError(
                f"OpenVINO cannot read the ONNX file of {name_of(job.model)}: {first_line(error)}"
            ) from error
        model.set_rt_info(metadata(job), ["vitprune"])
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
        del model  # it may hold on to the files that go now


def run(folder: Path, threads: int) -> Runner:
    """The model in OpenVINO on the CPU, computing in float32 where it is not quantized."""
    import openvino

    wanted = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(folder / FILE, "CPU", wanted)

    def runner(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = compiled([images])[0]
        return scores

    return runner


INFO = FormatInfo(
    "openvino",
    "OpenVINO model, for Intel's CPUs, GPUs and NPUs",
    FILE,
    extra="openvino",
    packages=("openvino", *onnx_file.INFO.packages),
    int8=("int8",),
)
FORMAT = Format(INFO, write, run)
