"""The formats by name, and what is said of those that cannot be had."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec

from vitprune.export import executorch_file, onnx_file, openvino_file, pt2_file
from vitprune.export.errors import ExportError
from vitprune.export.types import Format, FormatInfo, Quantization

FORMATS: dict[str, Format] = {
    "onnx": onnx_file.FORMAT,
    "pt2": pt2_file.FORMAT,
    "openvino": openvino_file.FORMAT,
    "executorch": executorch_file.FORMAT,
}
QUANTIZATIONS: dict[Quantization, str] = {
    "int8": "static: weights and activations in 8 bits, ranges of activations from calibration images",
    "int8-dynamic": "weights in 8 bits, ranges of activations taken anew from every batch",
}


def find_format(name: str, others: Iterable[str] = ()) -> Format:
    """The format of that name. Raises ExportError with the known names, `others` too, and the nearest one."""
    if name in FORMATS:
        return FORMATS[name]
    known = (*FORMATS, *others)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    advice = f"; did you mean {close[0]}?" if close else ""
    raise ExportError(f"--format must be one of {', '.join(known)}, but got {name!r}{advice}")


def check_quantization(info: FormatInfo, asked: str | None) -> Quantization | None:
    """The way of quantization of that name. Raises ExportError when there is none such, or the format lacks it."""
    if asked is None:
        return None
    for name in QUANTIZATIONS:
        if name == asked and name in info.int8:
            return name
    if asked not in QUANTIZATIONS:
        raise ExportError(f"--quantize must be one of {', '.join(QUANTIZATIONS)}, but got {asked!r}")
    having = ", ".join(n for n, f in FORMATS.items() if asked in f.info.int8)
    also = f" ({info.name} has {', '.join(info.int8)})" if info.int8 else ""
    raise ExportError(f"--format {info.name} has no {asked}{also}; formats that have it: {having}")


def check_packages(info: FormatInfo) -> None:
    """Pass when the packages that a format needs are installed. Raises ExportError that names the extra otherwise."""
    missing = [name for name in info.packages if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"--format {info.name} needs {', '.join(missing)}, which cannot be imported here; "
            f"install the extra: pip install 'vitprune[{info.extra}]'"
        )
