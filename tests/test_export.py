"""Exported files beside the model that they were made from, and the comparison itself by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vitprune
from conftest import TINY
from vitprune.export import (
    FORMATS,
    ExportError,
    Job,
    Parity,
    check_packages,
    check_parity,
    check_quantization,
    compare,
    find_format,
    registry,
)
from vitprune.export.parity import in_chunks, parity_of
from vitprune.models import LoadedModel
from vitprune.preprocessing import Preprocessing

HERE = Path(__file__).parents[1]


def case(name: str, quantize: str | None = None) -> object:
    """A parameter that is skipped where the format's packages are not installed."""
    lacking = [p for p in FORMATS[name].info.packages if importlib.util.find_spec(p) is None]
    marks = [pytest.mark.skipif(bool(lacking), reason=f"{', '.join(lacking)} not installed")]
    return pytest.param(name, quantize, marks=marks, id=f"{name}-{quantize or 'float32'}")


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    """A tiny ViT with 40 % of its MACs gone, all kinds of units among them, and random weights."""
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6", kinds=("heads", "mlp", "residual"))
    return dataclasses.replace(origin, model=vitprune.shrink(origin, graph, plan))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(n, n), torch.arange(n) % 3) for n in sizes]


def job(loaded: LoadedModel, **more: object) -> Job:
    return Job(loaded.model, loaded.preprocessing, ("red", "green", "blue"), **more)


@pytest.mark.parametrize(("name", "_"), [case(name) for name in FORMATS])
def test_float_files_answer_as_the_model_does(small: LoadedModel, name: str, _: None, tmp_path: Path) -> None:
    chosen = FORMATS[name]
    chosen.write(job(small, batch=chosen.info.batch), tmp_path)
    assert (tmp_path / chosen.info.file).is_file()
    found = compare(small.model, chosen.open(tmp_path, 1), batches(5, 3, 9), batch=chosen.info.batch)
    assert found.images == 17 and found.agreement == 1 and found.top1 == found.top1_model
    assert found.largest < 1e-5
    for path in tmp_path.iterdir():  # exporters like to note where every line of the model's code lies
        assert b"site-packages" not in path.read_bytes() and str(HERE).encode() not in path.read_bytes()


def test_models_that_return_more_than_scores(tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    model = transformers.ViTForImageClassification(config).eval()
    shape = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
    FORMATS["pt2"].write(Job(model, shape), tmp_path)
    found = compare(model, FORMATS["pt2"].open(tmp_path, 1), batches(4))
    assert found.largest < 1e-6 and found.agreement == 1


@pytest.mark.parametrize(("name", "quantize"), [case(name, how) for name, f in FORMATS.items() for how in f.info.int8])
def test_8_bit_files_are_near_the_model(small: LoadedModel, name: str, quantize: str, tmp_path: Path) -> None:
    chosen, batch = FORMATS[name], FORMATS[name].info.batch
    ranges = tuple(images(batch or 8, seed).numpy() for seed in range(8 if batch is None else 16))
    chosen.write(job(small, batch=batch, quantize=quantize, calibration=ranges), tmp_path)
    found = compare(small.model, chosen.open(tmp_path, 1), batches(64), batch=batch)
    assert 1e-4 < found.largest < 0.3  # not float32, and not far from it, on noise and with random weights
    assert found.agreement > 0.9
    assert not list(tmp_path.glob("float*"))


def test_an_onnx_file_says_what_it_wants(small: LoadedModel, tmp_path: Path) -> None:
    import onnx

    FORMATS["onnx"].write(job(small), tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (given,), (got,) = model.graph.input, model.graph.output
    dims = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, dims) == ("images", ["batch", 3, 16, 16])
    assert (got.name, [d.dim_param or d.dim_value for d in got.type.tensor_type.shape.dim]) == ("scores", ["batch", 3])
    about = json.loads({p.key: p.value for p in model.metadata_props}["vitprune"])
    assert about["classes"] == ["red", "green", "blue"] and about["precision"] == "float32"
    assert about["preprocessing"] == json.loads(json.dumps(small.preprocessing.to_json()))


def test_a_fixed_batch_stays_fixed(small: LoadedModel, tmp_path: Path) -> None:
    import onnxruntime

    FORMATS["onnx"].write(job(small, batch=2), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, 16, 16]
    found = compare(small.model, FORMATS["onnx"].open(tmp_path, 1), batches(5), batch=2)
    assert found.images == 5 and found.largest < 1e-5


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_large_models_keep_their_tensors_in_a_second_file(
    small: LoadedModel, quantize: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitprune.export.onnx_file.PROTOBUF_LIMIT", 0)
    chosen, ranges = FORMATS["onnx"], (images(8).numpy(),)
    chosen.write(job(small, quantize=quantize, calibration=ranges), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    found = compare(small.model, chosen.open(tmp_path, 1), batches(16))
    assert found.largest < (0.3 if quantize else 1e-5) and found.agreement > 0.8


def test_linear_layers_alone_are_in_8_bits_with_ranges_of_the_images(small: LoadedModel, tmp_path: Path) -> None:
    """The range of what a layer reads is the mean of the batches' extremes; every row of a weight has its scale."""
    import onnx
    from onnx import numpy_helper

    ranges = (images(8, 1), images(8, 2) * 3)
    FORMATS["onnx"].write(job(small, quantize="int8", calibration=tuple(batch.numpy() for batch in ranges)), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    layers = {n: m for n, m in small.model.named_modules() if isinstance(m, nn.Linear)}
    weights = [a for a in held.values() if a.dtype == np.int8 and a.ndim > 1]
    assert sorted(a.size for a in weights) == sorted(m.weight.numel() for m in layers.values())
    of_activations = [n for n in graph.node if n.op_type == "MatMul" and "DequantizeLinear" not in "".join(n.input)]
    assert len(of_activations) == 2 * 2  # two products in each of two blocks stay in float32

    layer, seen = small.model.blocks[0].mlp.fc1, []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for batch in ranges:
            small.model(batch)
    handle.remove()
    low, high = (float(np.mean([getattr(x, name)() for x in seen])) for name in ("min", "max"))
    scales = {float(a) for n, a in held.items() if n.endswith("_scale") and a.size == 1}
    assert any(s == pytest.approx((high - low) / 255, rel=1e-3) for s in scales), (scales, (high - low) / 255)
    rows = layer.weight.abs().amax(1).detach().numpy() / 127
    found = [a for n, a in held.items() if n.endswith("_scale") and a.shape == rows.shape]
    assert any(np.allclose(a, rows, rtol=2e-2) for a in found)


def test_parity_by_hand() -> None:
    model = np.array([[2.0, 1.0, 0.0], [0.0, 4.0, 1.0], [1.0, 1.00005, 0.0], [0.0, 0.0, 3.0]])
    file = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 1.4], [1.0, 0.99, 0.0], [0.0, 0.0, 3.0]])
    found = parity_of(model, file, np.array([0, 1, 0, 0]))
    assert found.largest == pytest.approx(3 / 4)
    assert found.agreement == 3 / 4  # the third image's classes are tied
    assert (found.top1_model, found.top1) == (2 / 4, 2 / 4)
    assert found.drop == 0
    assert parity_of(model, file, None).drop is None
    with pytest.raises(ExportError, match="not finite"):
        parity_of(model, file * np.nan, None)


def test_runners_of_one_batch_size_see_that_size_alone() -> None:
    seen = []

    def runner(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return x.sum((2, 3))

    x = images(7).numpy()
    assert np.array_equal(in_chunks(runner, x, 3), x.sum((2, 3)))
    assert seen == [3, 3, 3]
    assert np.array_equal(in_chunks(runner, x, None), x.sum((2, 3))) and seen[-1] == 7


def test_the_first_image_goes_alone_first() -> None:
    seen = []

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    def runner(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return x.mean((2, 3))

    assert compare(Mean(), runner, batches(4, 2)).images == 6
    assert seen == [1, 3, 2]
    with pytest.raises(ExportError, match=r"shape \[1, 2\] for one image, the model \[1, 3\]"):
        compare(Mean(), lambda x: x.mean((2, 3))[:, :2], batches(2))


@pytest.mark.parametrize(
    ("parity", "max_drop", "text"),
    [
        (Parity(10, 2e-3, 1.0, None, None), None, "differ by up to 0.002"),
        (Parity(10, float("nan"), 1.0, None, None), None, "differ by up to nan"),
        (Parity(10, 1e-6, 0.9, None, None), None, "90.00 % of 10 images"),
        (Parity(10, 0.5, 0.9, 0.93, 0.9199), 1.0, r"loses 1.01 points .*93.00 to 91.99 %.*--max-drop 1"),
    ],
)
def test_files_that_differ_are_refused(parity: Parity, max_drop: float | None, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        check_parity(parity, 1e-3, max_drop)


def test_files_that_are_near_enough_pass() -> None:
    check_parity(Parity(10, 9e-4, 1.0, 0.9, 0.9), 1e-3, None)
    check_parity(Parity(10, 0.5, 0.5, 0.93, 0.9201), 1e-3, 1.0)
    check_parity(Parity(10, 0.5, 0.5, 0.93, 0.95), 1e-3, 0.0)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ExportError, match=r"one of onnx, pt2, openvino, executorch, hf.*mean onnx\?"):
        find_format("onxx", ("hf",))
    with pytest.raises(ExportError, match="one of int8, int8-dynamic, but got 'int4'"):
        check_quantization(FORMATS["onnx"].info, "int4")
    with pytest.raises(ExportError, match="pt2 has no int8; formats that have it: onnx, openvino, executorch"):
        check_quantization(FORMATS["pt2"].info, "int8")
    with pytest.raises(ExportError, match=r"no int8-dynamic \(openvino has int8\).*onnx, executorch"):
        check_quantization(FORMATS["openvino"].info, "int8-dynamic")
    assert check_quantization(FORMATS["pt2"].info, None) is None


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: set[str] = set()
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name in gone else object())
    for name, chosen in FORMATS.items():
        gone.clear()
        check_packages(chosen.info)
        for package in chosen.info.packages:
            gone.add(package)
            with pytest.raises(ExportError, match=rf"{name} needs .*{package}.*'vitprune\[{chosen.info.extra}\]'"):
                check_packages(chosen.info)
    assert {f.info.extra for f in FORMATS.values()} <= {"", "export", "openvino", "executorch"}


def test_a_model_that_cannot_be_captured_is_refused(small: LoadedModel) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    with pytest.raises(ExportError, match="torch.export cannot capture Odd: .*--batch 1"):
        FORMATS["pt2"].write(dataclasses.replace(job(small), model=Odd()), Path("nowhere"))
