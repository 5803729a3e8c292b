"""Files that other runtimes run: each is opened again by its runtime and compared with the model before it counts."""

from vitprune.export.errors import ExportError
from vitprune.export.parity import Parity, check_parity, compare
from vitprune.export.registry import FORMATS, QUANTIZATIONS, check_packages, check_quantization, find_format
from vitprune.export.types import Format, FormatInfo, Job, Runner

__all__ = ["FORMATS", "QUANTIZATIONS", "ExportError", "Format", "FormatInfo", "Job", "Parity", "Runner"]
__all__ += ["check_packages", "check_parity", "check_quantization", "compare", "find_format"]
