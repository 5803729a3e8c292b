"""Files from anywhere: whatever they hold, loading gives a model or one clear error, runs no code, and stays small."""

from __future__ import annotations

import copy
import io
import json
import math
import resource
import shutil
import struct
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import vitprune
from conftest import TINY
from vitprune.allocate.ratios import read_layer_ratios
from vitprune.cli.config import read_config
from vitprune.data import open_data
from vitprune.errors import DataError, StoreError, TargetError, VitpruneError
from vitprune.export.capture import metadata
from vitprune.export.onnx_file import META
from vitprune.export.types import Job
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing
from vitprune.store.read import FILES, MODEL, PLAN, PREPROCESSOR, digest
from vitprune.store.tensors import load_tensors_, read_metadata

GIB = 2**20  # of ru_maxrss, which counts KiB
ROOM = 1.0  # GiB that a hostile file may cost on top
fuzz = settings(
    deadline=None, derandomize=True, max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
BAD = st.one_of(
    st.sampled_from([10**12, -1, 0, 2**63, 1e308, True, None, "", "\x00", "../../etc/passwd", "os:system", [], {}]),
    st.sampled_from(["timm:vit_giant_patch14_224", "x" * 5000, [[[[]]]], {"a": {"b": []}}, [0] * 3000, "module", "hf"]),
    st.integers(-(10**13), 10**13),
    st.floats(),
    st.text(max_size=20),
)


@cache
def kept() -> Path:
    """A small saved model, made once."""
    import tempfile

    folder = Path(tempfile.mkdtemp()) / "saved"
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6")
    vitprune.save(folder, vitprune.shrink(origin, graph, plan), plan, origin)
    vitprune.load(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(kept(), tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hostile names would call."""
    for name in ("system", "popen", "execv"):
        monkeypatch.setattr(f"os.{name}", lambda *_: pytest.fail("ran code"))
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("read a pickle"))


@pytest.fixture(autouse=True)
def small() -> Any:
    """The process grows by no more than ROOM."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / GIB < ROOM


def tried(folder: Path) -> torch.nn.Module | None:
    """The model, or None after an error of one readable line; any other exception is a failure."""
    try:
        return vitprune.load(folder)
    except VitpruneError as error:
        assert 0 < len(str(error)) < 4000
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """A copy with another value at the path."""
    if not path:
        return by
    made = copy.deepcopy(value)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = by
    return made


def signed(folder: Path, text: str) -> None:
    """Writes the plan with the checksum that belongs to it, as one who wants to be believed would."""
    (folder / PLAN).write_text(text)
    notes = {**read_metadata(kept() / MODEL), "plan": digest(text)}
    save_file(load_file(kept() / MODEL), folder / MODEL, metadata=notes)


def noise(seed: int) -> Image.Image:
    """12 x 12 colour pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))


@fuzz
@given(data=st.data())
def test_any_byte_of_any_file(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([n for n in FILES if n != "README.md"]))
    content = bytearray((kept() / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(content), 4000) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    (folder / name).write_bytes(content)
    tried(folder)
    shutil.copy(kept() / name, folder / name)


@settings(fuzz, max_examples=80)
@given(data=st.data())
def test_any_value_of_a_plan_that_is_signed_anew(folder: Path, data: st.DataObject) -> None:
    plan = json.loads((kept() / PLAN).read_text())
    where = data.draw(st.sampled_from(sorted(places(plan), key=str)))
    hostile = replaced(plan, where, data.draw(BAD))
    assume(hostile != plan)
    signed(folder, json.dumps(hostile))
    model = tried(folder)
    if model is not None:  # then it is the model that was saved, whatever the plan says besides
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model(x), vitprune.load(kept())(x))


@fuzz
@given(data=st.data())
def test_any_value_of_the_input_format(folder: Path, data: st.DataObject) -> None:
    fields = json.loads((kept() / PREPROCESSOR).read_text())
    where = data.draw(st.sampled_from(sorted(places(fields), key=str)))
    (folder / PREPROCESSOR).write_text(json.dumps(replaced(fields, where, data.draw(BAD))))
    tried(folder)


@pytest.mark.parametrize("field", ["size", "lanes", "kept"])
def test_a_plan_of_a_million_millions_is_refused(folder: Path, field: str) -> None:
    plan = json.loads((kept() / PLAN).read_text())
    name = next(n for n, g in plan["groups"].items() if g["kind"] == "mlp")
    plan["groups"][name][field] = [[10**12]] if field == "kept" else 10**12
    signed(folder, json.dumps(plan))
    with pytest.raises(StoreError, match=name):
        vitprune.load(folder)


@pytest.mark.parametrize(
    "source", [{"kind": "module", "name": "os:system", "options": {}}, {"kind": "pickle", "name": "x"}]
)
def test_a_source_that_is_code_is_not_called(folder: Path, source: dict[str, Any]) -> None:
    plan = json.loads((kept() / PLAN).read_text())
    signed(folder, json.dumps(plan | {"source": source}))
    with pytest.raises(VitpruneError):
        vitprune.load(folder)


@given(
    text=st.text(max_size=200) | st.recursive(BAD, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
@fuzz
def test_any_text_is_a_plan_or_an_error(text: Any) -> None:
    with suppress(StoreError):
        Plan.from_json(text if isinstance(text, str) else json.dumps(text))


@fuzz
@given(
    length=st.integers(0, 2**64 - 1) | st.integers(0, 400),
    header=st.binary(max_size=60) | BAD.map(lambda v: json.dumps({"first.weight": v}).encode()) | st.builds(
        lambda shape, ends, kind: json.dumps({"t": {"dtype": kind, "shape": shape, "data_offsets": ends}}).encode(),
        st.lists(st.integers(-1, 10**13), max_size=4), st.lists(st.integers(-1, 10**13), max_size=3),
        st.sampled_from(["F32", "I8", "X", ""]),
    ),
    own=st.booleans(), rest=st.binary(max_size=40),
)  # fmt: skip
def test_any_header_of_tensors(tmp_path: Path, length: int, header: bytes, own: bool, rest: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if own else length) + header + rest)
    for read in (read_metadata, lambda p: load_tensors_(p, torch.nn.Linear(2, 2))):
        try:
            read(path)
        except StoreError as error:
            assert "x.safetensors" in str(error)


@settings(fuzz, max_examples=120)
@given(data=st.data())
def test_any_image_is_read_or_named(tmp_path: Path, data: st.DataObject) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        noise(0).save(tmp_path / name / "good.png")
    kind = data.draw(st.sampled_from(["png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm"]))
    buffer = io.BytesIO()
    noise(1).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(content), 200) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=5))
    for old in (tmp_path / "a").glob("bad.*"):
        old.unlink()
    (tmp_path / "a" / f"bad.{kind}").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        found = open_data(str(tmp_path), Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), val_fraction=0.34)
        for part in (found.train, found.val):
            for images, _ in part:
                assert bool(torch.isfinite(images).all())
    except DataError as error:
        assert "bad." in str(error) or "one-channel" in str(error) or "classes" in str(error), error


def test_a_huge_image_is_refused(tmp_path: Path) -> None:
    """A file of some hundred bytes that claims 10 billion pixels."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    head = (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    (tmp_path / "a" / "huge.bmp").write_bytes(head + b"\0" * 100)
    with pytest.raises(DataError, match=r"huge.bmp"):
        data = open_data(str(tmp_path), Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), val_fraction=0.34)
        for part in (data.train, data.val):
            list(part)


def test_the_recursion_limit_is_no_way_out(folder: Path) -> None:
    deep = "[" * (sys.getrecursionlimit() * 20)
    for name in (PLAN, PREPROCESSOR):
        (folder / name).write_text(deep)
        with pytest.raises(StoreError):
            vitprune.load(folder)
        shutil.copy(kept() / name, folder / name)


@pytest.mark.parametrize("name", ["ratios.json", "ratios.toml", "compare.toml"])
def test_nor_is_it_for_files_that_users_write(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(("" if name.endswith("json") else "model = ") + "[" * (sys.getrecursionlimit() * 20))
    with pytest.raises(VitpruneError, match=name):
        read_config(path) if name == "compare.toml" else read_layer_ratios(path)


@pytest.mark.parametrize(
    ("field", "value"), [("mean", [10**400] * 3), ("std", [math.nan] * 3), ("mean", [math.inf] * 3)]
)
def test_numbers_that_no_image_has(folder: Path, field: str, value: list[float]) -> None:
    fields = json.loads((kept() / PREPROCESSOR).read_text())
    (folder / PREPROCESSOR).write_text(json.dumps(fields | {field: value}))
    with pytest.raises(StoreError, match=field):
        vitprune.load(folder)


def test_a_share_beyond_all_numbers(tmp_path: Path) -> None:
    (tmp_path / "ratios.json").write_text(json.dumps({"blocks.0.mlp": 10**400}))
    with pytest.raises(TargetError, match=r"share of 'blocks.0.mlp' must be a number"):
        read_layer_ratios(tmp_path / "ratios.json")


@fuzz
@given(
    names=st.lists(st.text(st.characters(categories=None), max_size=12) | st.sampled_from(["\udcff", "x" * 3000, ""]))
)
def test_any_class_names_come_through_an_onnx_file(tmp_path: Path, names: list[str]) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3]) for n in ("images", "scores")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["scores"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    told = metadata(Job(torch.nn.Identity(), Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), classes=tuple(names)))
    helper.set_model_props(model, {META: told})
    onnx.save(model, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map[META])["classes"] == names
