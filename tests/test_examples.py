"""The serving example, with a file that it has never seen."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitprune
from vitprune.data import open_data
from vitprune.pipeline.export_settings import ExportSettings

onnxruntime = pytest.importorskip("onnxruntime")
PATH = Path(__file__).parents[1] / "examples" / "serve_onnx.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("serve_onnx", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(example, tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("served") / "onnx"
    settings = ExportSettings(latency_batches=(), images=32)
    vitprune.export("shipped:fmnist-vit", out, data="fashion-mnist-sample", settings=settings)
    return example.Classifier(str(out / "model.onnx"))


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, torch.Tensor]:
    """12 test images as they lie in the file, and the dense model's scores of them, through vitprune's own reading."""
    from importlib.resources import as_file, files

    from vitprune.data.idx import read_split

    origin = vitprune.load_model("shipped:fmnist-vit")
    with as_file(files("vitprune") / "assets" / "fmnist_sample") as folder:
        raw = read_split(folder, "test").images[:, 0].numpy()
    batch, _ = next(iter(open_data("fashion-mnist-sample", origin.preprocessing).test))
    with torch.no_grad():
        return raw[:12], origin.model(batch[:12])


def test_scores_are_those_of_the_model(classifier, images):
    raw, wanted = images
    assert np.allclose(classifier.scores(raw), wanted.numpy(), atol=1e-4)
    found = classifier.classify(raw, k=3)
    assert [row[0]["class"] for row in found] == [classifier.about["classes"][int(i)] for i in wanted.argmax(1)]
    assert [row[0]["probability"] for row in found] == pytest.approx(wanted.softmax(1).amax(1).tolist(), abs=1e-4)
    assert all(len(row) == 3 for row in found)


def test_it_serves(example, classifier, images):
    raw, wanted = images
    with example.server(classifier, "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        body = io.BytesIO()
        np.save(body, raw[..., None])
        answer = json.loads(opener.open(f"{url}?k=2", body.getvalue(), timeout=20).read())
        assert [row[0]["class"] for row in answer] == [classifier.about["classes"][int(i)] for i in wanted.argmax(1)]
        assert json.loads(opener.open(url, timeout=20).read())["preprocessing"]["size"] == [28, 28]
        pickled = io.BytesIO()
        np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        small = io.BytesIO()
        np.save(small, raw[:, :20])
        for wrong, text in ((b"nonsense", ""), (pickled.getvalue(), "allow_pickle"), (small.getvalue(), "resize")):
            with pytest.raises(urllib.error.HTTPError) as refused:
                opener.open(url, wrong, timeout=20)
            assert refused.value.code == 400 and text in json.loads(refused.value.read())["error"]
        running.shutdown()


def test_it_needs_numpy_and_onnxruntime_alone():
    code = f"import runpy, sys\nrunpy.run_path({str(PATH)!r})\nprint({{'torch', 'vitprune', 'PIL'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
