"""ONNX files, for onnxruntime and everything else that reads ONNX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from vitprune.export.capture import INPUT, OUTPUT, capture, first_line, metadata, name_of, quiet
from vitprune.export.errors import ExportError
from vitprune.export.types import Format, FormatInfo, Job, Runner

FILE = "model.onnx"
META = "vitprune"  # key in the file's metadata
PROTOBUF_LIMIT = 1_900_000_000  # bytes; a file of more than 2 GB keeps its tensors in a second one


def write(job: Job, folder: Path) -> None:
    """model.onnx in `folder`, quantized if that is asked for; its metadata `vitprune` says how images are prepared."""
    path = folder / FILE
    if job.quantize is None:
        write_float(job, path)
        return
    from vitprune.export.onnx_int8 import quantize

    whole = folder / "float.onnx"
    write_float(job, whole)
    quantize(whole, path, job)
    for left in folder.glob("float.onnx*"):
        left.unlink()


def write_float(job: Job, path: Path) -> None:
    """The model in float32 at `path`. Raises ExportError when torch's exporter cannot translate it."""
    program = capture(job)
    held = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    try:
        with quiet(), torch.no_grad():
            made: Any = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
            made.save(path, external_data=held > PROTOBUF_LIMIT)
    except Exception as error:
        raise ExportError(f"torch.onnx cannot translate {name_of(job.model)}: {first_line(error)}") from error
    _finish(path, job)


def _finish(path: Path, job: Job) -> None:
    """Names the free dim `batch`, and puts the metadata in the place of the exporter's own notes on every node."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info) if symbol else ():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)
    for noted in (model, graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node):
        del noted.metadata_props[:]
    onnx.helper.set_model_props(model, {META: metadata(job)})
    onnx.save(model, path)


def run(folder: Path, threads: int) -> Runner:
    """The file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

    def runner(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = session.run([OUTPUT], {INPUT: images})[0]
        return scores

    return runner


INFO = FormatInfo(
    "onnx",
    "ONNX file, for onnxruntime, TensorRT, browsers, ...",
    FILE,
    extra="export",
    packages=("onnx", "onnxscript", "onnxruntime"),
    int8=("int8", "int8-dynamic"),
)
FORMAT = Format(INFO, write, run)
