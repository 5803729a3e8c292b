import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import TINY
from toys import Toy, toy_graph
from vitprune import store
from vitprune.errors import DataError, ModelError, StoreError
from vitprune.models import example
from vitprune.pipeline.inspect_run import inspect_graph
from vitprune.pipeline.measure import row_from_json, say, tensor_bytes
from vitprune.pipeline.opening import open_model, trace_batch
from vitprune.pipeline.setup import DataSettings, open_both, resolve_device
from vitprune.pipeline.stages import WorkFolder
from vitprune.pipeline.teacher import Adapted, open_teacher
from vitprune.plan import identity
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Silent
from vitprune.recover import TrainSettings
from vitprune.report import Row
from vitprune.trace import trace


def test_stages_are_remembered_between_runs(tmp_path):
    settings = {"model": "m", "lr": 0.1, "kinds": ("a", "b"), "none": None}
    work = WorkFolder.open(tmp_path / "out", settings)
    assert work.path == tmp_path / "out.work"
    assert work.result("plan") is None
    work.finish("plan", {"x": [1]})
    again = WorkFolder.open(tmp_path / "out", settings)
    assert again.result("plan") == {"x": [1]}
    fresh = WorkFolder.open(tmp_path / "out", settings, resume=False)
    assert fresh.result("plan") is None
    fresh.remove()
    assert not fresh.path.exists()


def test_a_work_folder_of_other_settings_is_not_used(tmp_path):
    WorkFolder.open(tmp_path / "out", {"lr": 0.1, "seed": 1})
    with pytest.raises(StoreError, match=r"other settings \(lr, new\); give --no-resume to start over"):
        WorkFolder.open(tmp_path / "out", {"lr": 0.2, "seed": 1, "new": 1})
    WorkFolder.open(tmp_path / "nested", {"train": {"lr": 0.1, "ema": 0}, "data": {"spec": "a"}})
    with pytest.raises(StoreError, match=r"other settings \(data, train.lr\)"):
        WorkFolder.open(tmp_path / "nested", {"train": {"lr": 0.2, "ema": 0}, "data": None})
    work = WorkFolder.open(tmp_path / "out", {"lr": 0.2}, resume=False)
    assert json.loads((work.path / "run.json").read_text()) == {"lr": 0.2}


def test_a_foreign_or_damaged_work_folder_is_left_alone(tmp_path):
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "mine").write_text("x")
    with pytest.raises(StoreError, match=r"out.work was not made by vitprune"):
        WorkFolder.open(tmp_path / "out", {}, resume=False)
    assert (tmp_path / "out.work" / "mine").exists()
    work = WorkFolder.open(tmp_path / "other", {})
    work.finish("a", 1)
    (work.path / "a.done.json").write_text("{")
    with pytest.raises(StoreError, match=r"a.done.json cannot be read"):
        work.result("a")
    (work.path / "run.json").write_text("[]")
    with pytest.raises(StoreError, match=r"run.json cannot be read: no JSON object"):
        WorkFolder.open(tmp_path / "other", {})


def test_rows_survive_json():
    row = Row("dense", 10, 20, 0.5, (0.4, 0.6), 100, 1.5, 30.5, 40)
    assert row_from_json(json.loads(json.dumps(row.to_json()))) == row
    assert row_from_json(Row("dense", 10, 20).to_json()) == Row("dense", 10, 20)
    assert say(row) == "dense: top-1 50.00 % of 100 images, 10 parameters, 20 MACs"
    assert say(Row("x", 1000, 20)) == "x: 1,000 parameters, 20 MACs"


def test_tensor_bytes_counts_shared_tensors_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    assert tensor_bytes(model) == 72
    model[1].weight = model[0].weight
    assert tensor_bytes(model) == 36


def test_one_image_is_doubled_for_the_trace():
    (doubled,) = trace_batch(torch.ones(1, 2, 3))
    assert doubled.shape == (2, 2, 3)
    kept, other = trace_batch((torch.ones(4, 2), 7))
    assert kept.shape == (4, 2)
    assert other == 7


def test_inspection_takes_each_group_by_itself():
    graph = toy_graph()
    found = inspect_graph(graph, "toy")
    assert found.params == sum(p.numel() for p in Toy().parameters())
    mlp = next(g for g in found.groups if g.kind == "mlp")
    assert (mlp.params, mlp.macs) == (64 * (32 + 1 + 32), 9 * 64 * 32 * 2)
    assert json.loads(json.dumps(found.to_json()))["model"] == "toy"


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="device 'gpu' cannot be used: .*; choose cpu or auto"):
        resolve_device("gpu")


def test_model_and_data_must_fit(image_folder):
    spec = "timm:vit_tiny_patch16_224?img_size=16&patch_size=8&embed_dim=12&depth=1&num_heads=2&num_classes=4"
    with pytest.raises(DataError, match="3 classes, but the model has a head of 4; give --new-head for a head of 3"):
        open_both(spec, DataSettings(str(image_folder)), TrainSettings(), device="cpu", progress=Silent())
    opened, data = open_both(
        spec, DataSettings(str(image_folder)), TrainSettings(), device="cpu", progress=Silent(), new_head=True
    )
    assert opened.loaded.num_classes == len(data.classes) == 3


def test_a_teacher_of_another_preprocessing_sees_its_own():
    given = Preprocessing(size=(4, 4), mean=(0.5,), std=(0.25,), channels=1)
    wanted = Preprocessing(size=(4, 4), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    pixels = torch.rand(2, 1, 4, 4)
    seen = Adapted(nn.Flatten(), given, wanted)((pixels - 0.5) / 0.25)
    means, stds = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    expected = (pixels - means.view(1, 3, 1, 1)) / stds.view(1, 3, 1, 1)
    torch.testing.assert_close(seen.view(2, 3, 4, 4), expected)
    bigger = Preprocessing(size=(8, 6), mean=(0.5,), std=(0.25,), channels=1)
    assert Adapted(nn.Flatten(), given, bigger)(pixels).shape == (2, 48)


def test_a_teacher_must_fit(tmp_path):
    loaded = open_model(TINY).loaded
    three = ("a", "b", "c")
    plain = open_teacher(TINY, loaded, three, device="cpu", seed=3)
    assert type(plain) is type(loaded.model)
    assert isinstance(open_teacher(TINY + "&mean=0.1", loaded, three, device="cpu"), Adapted)
    with pytest.raises(ModelError, match=r"takes 1 channel\(s\), and the student's images have 3"):
        open_teacher(TINY.replace("in_chans=3", "in_chans=1"), loaded, three, device="cpu")
    with pytest.raises(DataError, match="must score the data's 2 classes"):
        open_teacher(TINY, loaded, three[:2], device="cpu")
    graph = trace(loaded.model, (example(loaded.preprocessing),))
    plan = replace(identity(graph), source=loaded.source.to_json(), versions={})
    store.save(tmp_path / "saved", loaded.model, plan, loaded.preprocessing, classes=three)
    open_teacher(str(tmp_path / "saved"), loaded, three, device="cpu")
    with pytest.raises(DataError, match=r"class 1 of .*saved is 'b' and that of the data 'c'"):
        open_teacher(str(tmp_path / "saved"), loaded, ("a", "c", "b"), device="cpu")
