"""Exported files beside PyTorch: answers on all test images, and latency in turns, dense and pruned, by format.

    python benchmarks/exported.py --threads 1                    # the shipped ViT and half of its MACs
    python benchmarks/exported.py --threads 1 --formats onnx,openvino

Formats whose packages are not installed are left out, and the page says so. The pruned model is made with the default
settings of `vitprune.prune` and not trained. Every file is compared with the PyTorch model that it was made from, batch
sizes 1 and 64 among those tried; static 8-bit ranges come from training images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from record import parser, setting, table, write
from subject import Subject, add_options

import vitprune
from vitprune.evaluate import file_size, latency
from vitprune.export import FORMATS, ExportError, Job, check_packages, compare
from vitprune.models import example
from vitprune.pipeline.export_speed import adapted
from vitprune.progress import make_progress

RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "torchao")
TURNS = 150


@dataclass(frozen=True)
class Made:
    """One file, open in its runtime."""

    model: str
    format: str
    precision: str
    batch: int | None
    call: Callable[[Any], Any]


def made(
    name: str, model: Any, subject: Subject, ranges: Any, formats: list[str], given: Any, work: Path, rows: list[Any]
) -> Iterator[Made]:
    """All files of one model; `rows` gets what they answer on the test images."""
    for format in formats:
        chosen = FORMATS[format]
        for precision in ("float32", *chosen.info.int8):
            folder, batch = work / f"{name}-{format}-{precision}", chosen.info.batch
            folder.mkdir()
            quantize = None if precision == "float32" else precision
            parts = np.split(ranges, len(ranges) // (batch or 32))
            chosen.write(Job(model, subject.origin.preprocessing, (), batch, quantize, tuple(parts)), folder)
            runner = chosen.open(folder, given.threads)
            found = compare(model, runner, subject.test, batch=batch)
            row = {"model": name, "format": format, "precision": precision, "bytes": file_size(folder)}
            rows.append(row | found.to_json())
            print(rows[-1], flush=True)
            yield Made(name, format, precision, batch, adapted(runner))


def timed(calls: Mapping[str, Any], image: Any, batch: int, threads: int) -> list[dict[str, Any]]:
    """Latencies of all, in turns."""
    found = latency(calls, image, batch_sizes=(batch,), threads=threads, warmup=10, repeats=TURNS)
    rows = []
    for row in found:
        model, _, by = row.name.partition("\t")
        rows.append(
            {"model": model, "by": by, "batch": batch, "ms": row.median_ms, "p10": row.p10_ms, "p90": row.p90_ms}
        )
    return rows


def pruned(subject: Subject, target: str, seed: int) -> Any:
    """The subject pruned to the target by the default settings, and the share of MACs that it keeps."""
    images = subject.calibration(seed)
    small, plan = vitprune.prune(subject.origin.model, example(subject.origin.preprocessing), target, batches=images)
    return small.eval(), plan.obtained["macs"]["ratio"]


def answers_table(rows: list[dict[str, Any]]) -> str:
    """What the files answer."""
    cells = []
    for r in rows:
        shares = (f"{100 * r['agreement']:.2f}", f"{100 * r['top1_model']:.2f}", f"{100 * r['top1']:.2f}")
        name = f"{r['model']}, {r['format']} {r['precision']}"
        cells.append((name, f"{r['bytes'] / 1e6:.2f}", f"{r['largest']:.1e}", *shares, f"{r['drop']:+.2f}"))
    head = ("file", "MB", "largest difference", "same class %", "PyTorch top-1 %", "top-1 %", "points lost")
    return table(head, cells)


def times_table(rows: list[dict[str, Any]], batch: int) -> str:
    """Latencies of one batch size, and how many times faster than eager PyTorch of the same and of the dense model."""
    here = [r for r in rows if r["batch"] == batch]
    eager = {r["model"]: r["ms"] for r in here if r["by"] == "eager"}
    cells = [
        (
            f"{r['model']}, {r['by']}",
            f"{r['ms']:.2f} ({r['p10']:.2f} to {r['p90']:.2f})",
            f"{eager[r['model']] / r['ms']:.2f}",
            f"{eager['dense'] / r['ms']:.2f}",
        )
        for r in here
    ]
    return f"## Batch {batch}\n\n" + table(("", "ms, median (p10 to p90)", "x eager", "x dense eager"), cells)


def main() -> None:
    """Makes, compares and times all files, and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--target", default="macs=0.5")
    options.add_argument("--formats", default=",".join(FORMATS))
    options.add_argument("--ranges", type=int, default=256, help="calibration images of static int8")
    options.add_argument("--batches", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8])
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress, subject = make_progress(), Subject.of(given)
    formats, left = [], []
    for name in given.formats.split(","):
        try:
            check_packages(FORMATS[name].info)
            formats.append(name)
        except ExportError as error:
            left.append(f"{name} is left out: {error}")
    small, share = pruned(subject, given.target, given.seed)
    ranges = np.concatenate([images.numpy() for images, _ in subject.calibration(given.seed)])[: given.ranges]
    named = {"dense": subject.origin.model, "pruned": small}
    answers: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        files: list[Made] = []
        for name, model in named.items():
            progress.line(f"{name}: writing and comparing")
            files += made(name, model, subject, ranges, formats, given, Path(place), answers)
        image = example(subject.origin.preprocessing, batch=1)
        for batch in given.batches:
            calls: dict[str, Any] = {}
            for name, model in named.items():
                calls[f"{name}\teager"] = model
                calls[f"{name}\tcompile"] = torch.compile(model, dynamic=False)
                for f in files:
                    if f.model == name and f.batch in (None, batch):
                        calls[f"{name}\t{f.format} {f.precision}"] = f.call
            times += timed(calls, image, batch, given.threads)
    n = answers[0]["images"]
    about = setting(given.threads, given.seed) | {
        "model": f"{subject.label}, dense and with {100 * share:.1f} % of its MACs ({given.images} calibration images, "
        "no training)",
        "images": f"compared on {n:,} test images of {given.data}; ranges of int8 from {given.ranges} training images",
        "latency": f"{TURNS} turns, all files of a batch size and PyTorch taking turns; OpenVINO computes in float32; "
        "executorch's files take one image per call",
    }
    about |= {"runtimes": ", ".join(f"{name} {found}" for name in RUNTIMES if (found := installed(name)))}
    sections = ["## Answers", answers_table(answers), *(times_table(times, b) for b in given.batches), *left]
    write(given.out, f"exported-{subject.label}", "Exported files beside PyTorch", sections, answers + times, about)


def installed(package: str) -> str:
    """Its version, "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
