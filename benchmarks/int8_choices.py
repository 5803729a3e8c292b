"""What matters for 8-bit ONNX files: one choice of onnxruntime's quantizer after the other, on validation images.

    python benchmarks/int8_choices.py --threads 1 --val-images 2000
    python benchmarks/int8_choices.py --threads 1 --model hf:/tmp/dinov2-98 --val-images 500

Every row differs from the first, the default of `vitprune export --quantize int8`, in what its name says. Ranges come
from training images. The test images are not looked at. Same class: images with the class of the float model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from record import parser, setting, table, write

import vitprune
from vitprune.data import open_data
from vitprune.export import Job, compare, onnx_file, onnx_int8
from vitprune.progress import make_progress

WITH_CONV = [*onnx_int8.LINEAR, "Conv"]


def variants() -> dict[str, dict[str, Any]]:
    """Name -> what differs from the default."""
    from onnxruntime.quantization import CalibrationMethod, QuantType

    def clipped(share: float) -> dict[str, Any]:
        options = {"CalibPercentile": share, "CalibMovingAverage": False}
        return {"calibrate_method": CalibrationMethod.Percentile, "extra_options": options}

    plain = {"extra_options": {"CalibMovingAverage": False}}
    return {
        "default": {},
        "smallest and largest of all batches": plain,
        "with the patch embedding": {"op_types_to_quantize": WITH_CONV},
        "with products of activations": {"nodes_to_exclude": []},
        "a scale per weight, not per channel": {"per_channel": False},
        "activations symmetric": {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
        "percentile 99.999": clipped(99.999),
        "percentile 99.99": clipped(99.99),
        "percentile 99.9": clipped(99.9),
        "entropy": {"calibrate_method": CalibrationMethod.Entropy, **plain},
    }


def main() -> None:
    """Tries all choices and writes the dated page."""
    options = parser(__doc__)
    options.add_argument("--model", default="shipped:fmnist-vit", help="a MODEL, or a folder that vitprune saved")
    options.add_argument("--data", default="fashion-mnist")
    options.add_argument("--val-images", type=int, default=2000)
    options.add_argument("--images", type=int, default=256, help="calibration images (default 256)")
    given = options.parse_args()

    import torch

    torch.set_num_threads(given.threads)
    progress = make_progress()
    origin = vitprune.load_model(given.model)
    data = open_data(
        given.data, origin.preprocessing, seed=given.seed, calibration=given.images, val_images=given.val_images
    )
    assert data.calibration is not None
    parts = tuple(chunk.numpy() for images, _ in data.calibration for chunk in images.split(32))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for name, changes in {**variants(), "int8-dynamic": {}}.items():
            how = "int8-dynamic" if name == "int8-dynamic" else "int8"
            job = Job(origin.model, origin.preprocessing, quantize=how, calibration=parts)
            onnx_file.write_float(job, work / "float.onnx")
            onnx_int8.quantize(work / "float.onnx", work / onnx_file.FILE, job, **changes)
            rows.append(
                {"choice": name} | compare(origin.model, onnx_file.run(work, given.threads), data.val).to_json()
            )
            progress.line(f"{name}: {rows[-1]}")
    cells = [
        (
            r["choice"],
            f"{100 * r['agreement']:.2f}",
            f"{100 * r['top1']:.2f}",
            f"{r['drop']:+.2f}",
            f"{r['largest']:.2f}",
        )
        for r in rows
    ]
    label = Path(given.model.partition(":")[2] or given.model).name
    about = setting(given.threads, given.seed) | {
        "model": f"{label}, top-1 {100 * rows[0]['top1_model']:.2f} % of {rows[0]['images']:,} validation images",
        "ranges": f"from {given.images} training images of {given.data}",
    }
    head = ("choice", "same class %", "top-1 %", "points lost", "largest difference")
    write(given.out, f"int8-choices-{label}", "Choices in 8-bit quantization", [table(head, cells)], rows, about)


if __name__ == "__main__":
    main()
