"""OpenVINO models, for Intel's CPUs, GPUs and NPUs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vitprune.export import onnx_file
from vitprune.export.capture import INPUT, OUTPUT, capture, first_line, metadata, name_of, quiet
from vitprune.export.errors import ExportError
from vitprune.export.types import Format, FormatInfo, Job, Runner

FILE = "model.xml"  # its weights lie beside it, in model.bin


def write(job: Job, folder: Path) -> None:
    """model.xml and model.bin in `folder`, weights in float32, or as the 8-bit ONNX file has them.

    Raises ExportError when OpenVINO cannot translate the model.
    """
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as work:
        if job.quantize:
            onnx_file.write(job, Path(work))
            source: Any = str(Path(work) / onnx_file.FILE)
        else:
            source = capture(job)
        try:
            with quiet():
                model = openvino.convert_model(source)
        except Exception as error:
            raise ExportError(f"OpenVINO cannot translate {name_of(job.model)}: {first_line(error)}") from error
        shape = [-1 if job.batch is None else job.batch, job.preprocessing.channels, *job.preprocessing.size]
        model.reshape({model.input(0): openvino.PartialShape(shape)})
        model.input(0).get_tensor().set_names({INPUT})
        model.output(0).get_tensor().set_names({OUTPUT})
        model.set_rt_info(metadata(job), ["vitprune"])
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)


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
    packages=("openvino",),
    int8=("int8",),
    int8_extra="export",
    int8_packages=("onnx", "onnxscript", "onnxruntime"),
)
FORMAT = Format(INFO, write, run)
