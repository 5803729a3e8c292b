"""What `vitprune export` does: write, open again, compare, time, and only then keep."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitprune import models, store
from vitprune.data import Data
from vitprune.errors import DataError
from vitprune.evaluate import file_size
from vitprune.export import (
    ExportError,
    Job,
    Parity,
    check_packages,
    check_parity,
    check_quantization,
    compare,
    find_format,
)
from vitprune.export.capture import metadata
from vitprune.files import check_free, new_folder
from vitprune.pipeline.export_hub import HUB_INFO, check_card, export_hub, public
from vitprune.pipeline.export_settings import HUB, Card, ExportResult, ExportSettings
from vitprune.pipeline.export_speed import speeds
from vitprune.pipeline.opening import Opened, open_model
from vitprune.pipeline.setup import DataSettings, open_both
from vitprune.pipeline.versions import versions
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Progress, Silent
from vitprune.recover import TrainSettings

MARKER = "export.json"
RANDOM_IMAGES = 33
CALIBRATION_BATCH = 32
RUNTIMES = ("onnx", "onnxruntime", "onnxscript", "openvino", "executorch", "torchao")


@dataclass(frozen=True, slots=True)
class _Images:
    """What a file is compared on, and calibrated with."""

    batches: Iterable[tuple[Tensor, Tensor | None]]
    what: str
    classes: tuple[str, ...]
    data: Data | None = None


def run_export(
    spec: str,
    data: DataSettings | None,
    settings: ExportSettings,
    out: Path,
    *,
    card: Card | None = None,
    force: bool = False,
    seed: int = 0,
    allow_module: str | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """The exported model in the folder `out`, with export.json, which says what the result says.

    spec, data: MODEL and DATA of the command line; without data, float files are compared on random images. card: for
    the format "hf" alone. seed: of calibration and validation images.

    Raises ExportError for a format, way of quantization or package that is not there, or a file that does not answer
    as the model does; StoreError when `out` is in use; ModelError, DataError when model or images cannot be had. On any
    error nothing is left behind.
    """
    said = progress or Silent()
    if data is not None and data.val_images is None:
        data = replace(data, val_images=settings.images or None)
    chosen = None if settings.format == HUB else find_format(settings.format, (HUB,))
    info = HUB_INFO if chosen is None else chosen.info
    quantize = check_quantization(info, settings.quantize)
    check_packages(info)
    if quantize and data is None:
        why = "its ranges are taken from" if quantize == "int8" else "it is judged by"
        raise ExportError(f"--quantize {quantize} needs --data: {why} real images")
    if chosen is None:
        check_card(card or Card(), settings)
    elif card is not None:
        raise ExportError(f"--repo, --license and --base-model are for --format {HUB}, but the format is {info.name}")
    check_free(out.absolute(), force=force, marker=MARKER if chosen else "plan.json")
    opened, images = _opened(spec, data, settings, seed, allow_module, said)
    if chosen is None:
        return export_hub(
            opened,
            images.batches,
            images.what,
            out,
            card or Card(),
            classes=images.classes,
            data=None if data is None else public(data.spec),
            metrics=saved_metrics(spec),
            force=force,
            progress=said,
        )
    batch = settings.batch or info.batch
    wanted = Job(
        opened.model,
        opened.loaded.preprocessing,
        images.classes,
        batch,
        quantize,
        () if quantize != "int8" or images.data is None else _arrays(images.data, batch or CALIBRATION_BATCH),
    )
    threads = settings.threads or torch.get_num_threads()
    with new_folder(out, force=force, marker=MARKER) as work:
        said.line(f"writing {info.name}, {settings.precision}")
        chosen.write(wanted, work)
        size = file_size(work)
        runner = chosen.open(work, threads)
        parity = compare(opened.model, runner, images.batches, batch=batch, progress=said)
        check_parity(parity, info.tolerance, settings.max_drop if quantize else None)
        said.line(say(parity, images.what))
        rows, notes = speeds(opened, chosen, wanted, runner, settings, said) if settings.latency_batches else ((), ())
        about = json.loads(metadata(wanted)) | {"model": spec, "source": opened.loaded.source.to_json()}
        about |= {"versions": versions() | _runtimes()}
        result = ExportResult(
            out, info.file, info.name, settings.precision, batch, size, parity, images.what, rows, notes, about
        )
        (work / MARKER).write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
        del runner
    return result


def saved_metrics(spec: str) -> dict[str, Any]:
    """What the folder that `spec` names holds of measurements; nothing for models that are no folders."""
    folder = store.local(spec) if spec.startswith(store.PREFIX) else Path(spec)
    return store.read(folder).metrics if store.is_saved(folder) else {}


def say(parity: Parity, what: str) -> str:
    """The parity in one line."""
    text = f"scores differ by at most {parity.largest:.1e} of the largest, {100 * parity.agreement:.2f} % same class, "
    if parity.top1 is not None and parity.top1_model is not None:
        text += f"top-1 {100 * parity.top1_model:.2f} -> {100 * parity.top1:.2f} %, "
    return f"{text}{parity.images} {what}"


def _opened(
    spec: str, data: DataSettings | None, settings: ExportSettings, seed: int, allow_module: str | None, said: Progress
) -> tuple[Opened, _Images]:
    """The model on the CPU, and what it is compared on."""
    if data is None:
        opened = open_model(spec, device="cpu", seed=seed, allow_module=allow_module)
        return opened, _Images(_random(opened.loaded.preprocessing), "random images (no --data)", opened.classes)
    opened, found = open_both(
        spec,
        data,
        TrainSettings(batch_size=CALIBRATION_BATCH, seed=seed),
        device="cpu",
        progress=said,
        allow_module=allow_module,
        calibration=settings.calibration if settings.quantize == "int8" else 0,
    )
    if opened.classes and opened.classes != found.classes:
        pairs = zip(opened.classes, found.classes, strict=True)
        number, (own, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise DataError(
            f"{data.spec} has other classes than {spec} was saved with: class {number} is {other!r}, not {own!r}; "
            "its accuracy would mean nothing; give data with the same classes in the same order"
        )
    return opened, _Images(found.val, f"validation images of {data.spec}", found.classes, found)


def _random(preprocessing: Preprocessing) -> list[tuple[Tensor, Tensor | None]]:
    return [(models.example(preprocessing, batch=n, seed=n), None) for n in (1, 7, RANDOM_IMAGES - 8)]


def _arrays(data: Data, batch: int) -> tuple[npt.NDArray[Any], ...]:
    """The calibration images, float32 (batch, C, H, W) each; what is left over is not used."""
    assert data.calibration is not None
    images = np.concatenate([images.numpy() for images, _ in data.calibration])
    if len(images) < batch:
        raise ExportError(f"--calibration must be at least the batch size, {batch}, but there are {len(images)} images")
    whole = len(images) // batch
    return tuple(np.ascontiguousarray(part, dtype=np.float32) for part in np.split(images[: whole * batch], whole))


def _runtimes() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
