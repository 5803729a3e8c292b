import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from toys import toy_graph
from vitprune.errors import StoreError
from vitprune.plan import PlanError, identity
from vitprune.preprocessing import Preprocessing
from vitprune.store import FILES, is_saved, load, read, save
from vitprune.store.probe import answer, probe_input
from vitprune.store.tensors import TIE

SHAPE = Preprocessing((4, 6), (0.5,), (0.25,), "bilinear", 1)


class Small(nn.Module):
    """(B, 1, 4, 6) -> (B, 3), with tied weights, a scalar, a buffer of each sort and a frozen parameter."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(24, width)
        self.again = nn.Linear(24, width)
        self.again.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)
        self.register_buffer("table", torch.arange(float(width)), persistent=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = x.flatten(1)
        return {"logits": self.head(self.norm(self.first(x) * self.scale + self.again(x)) + self.table)}


def trained(width=8, seed=1):
    torch.manual_seed(seed)
    model = Small(width)
    model.norm.running_mean.uniform_()
    return model


def plan():
    source = {"kind": "module", "name": "toys:Small", "options": {}}
    return dataclasses.replace(identity(toy_graph()), source=source, method="random", asked={"macs": 0.5})


def rebuild(_plan, _preprocessing):
    return trained(seed=2)


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "out", trained(), plan(), SHAPE, classes=("a", "b", "ö"), metrics={"rows": [{"top1": 0.5}]})


def test_round_trip(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    model = load(saved, rebuild)
    want = trained().eval()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), want.state_dict().values(), strict=True))
    assert model.again.weight is model.first.weight
    assert not model.training
    x = torch.randn(3, 1, 4, 6)
    assert torch.equal(model(x)["logits"], want(x)["logits"])
    contents = read(saved)
    assert (contents.plan, contents.preprocessing, contents.classes) == (plan(), SHAPE, ("a", "b", "ö"))
    assert contents.metrics == {"rows": [{"top1": 0.5}]}
    assert is_saved(saved)
    assert "| top1 |" in (saved / "README.md").read_text()


def test_class_names_that_are_no_text_come_back(tmp_path):
    names = ("a", "b\udcff", "\x00")  # of a folder whose name is no UTF-8
    folder = save(tmp_path / "out", trained(), plan(), SHAPE, classes=names)
    assert read(folder).classes == names


def test_saving_leaves_the_model_alone(tmp_path):
    model = trained().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(tmp_path / "out", model, plan(), SHAPE)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_half_precision_comes_back(tmp_path):
    save(tmp_path / "out", trained().to(torch.bfloat16), plan(), SHAPE)
    model = load(tmp_path / "out", lambda p, q: trained(seed=3))
    assert model.first.weight.dtype == torch.bfloat16
    assert model.again.weight is model.first.weight


def test_shared_tensors_are_stored_once(saved):
    stored = load_file(saved / "model.safetensors")
    assert "first.weight" in stored
    assert "again.weight" not in stored
    assert "table" not in stored


def test_weights_tied_in_the_file_fill_an_untied_model(saved):
    def untied(_plan, _preprocessing):
        model = trained(seed=2)
        model.again.weight = nn.Parameter(torch.zeros(8, 24))
        return model

    assert torch.equal(load(saved, untied).again.weight, trained().first.weight)


def retensor(folder: Path, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    metadata = {"plan": read(folder).plan_digest, TIE + "again.weight": "first.weight"}
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "tensors missing: head.bias"),
        (lambda t: t.update(other=torch.ones(1)), "tensors extra: other"),
        (lambda t: t.update({"head.bias": torch.ones(4)}), r"of another shape: head.bias is \[4\], must be \[3\]"),
        (lambda t: t["head.bias"].add_(1), "outputs differ from those of the saved model by"),
        (lambda t: t["head.bias"].mul_(float("nan")), "outputs differ from those of the saved model by nan"),
    ],
)
def test_changed_tensors_are_named(saved, change, message):
    retensor(saved, change)
    with pytest.raises(StoreError, match=message):
        load(saved, rebuild)


def test_all_missing_tensors_fit_in_a_line(saved):
    retensor(saved, lambda t: [t.pop(k) for k in list(t) if k != "head.bias"])
    with pytest.raises(StoreError, match=r"missing: scale, first.weight, .* and \d more"):
        load(saved, rebuild)


def test_edited_plan_is_found(saved):
    path = saved / "plan.json"
    path.write_text(path.read_text().replace('"macs": 0.5', '"macs": 0.4'))
    with pytest.raises(StoreError, match=r"plan.json was edited: its checksum"):
        load(saved, rebuild)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(PlanError, match="not valid JSON"):
        load(saved, rebuild)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q"])
def test_pickles_are_refused(saved, start):
    (saved / "model.safetensors").write_bytes(start + b"x" * 100)
    with pytest.raises(StoreError, match="is a pickle or torch archive, which is never loaded"):
        load(saved, rebuild)


def test_a_real_torch_archive_is_refused(saved):
    torch.save(trained().state_dict(), saved / "model.safetensors")
    with pytest.raises(StoreError, match="is a pickle or torch archive"):
        load(saved, rebuild)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights_are_refused(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="is no whole safetensors file"):
        load(saved, rebuild)


def test_folders_that_are_not_ours(tmp_path, saved):
    with pytest.raises(StoreError, match="does not exist"):
        load(tmp_path / "none", rebuild)
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"model.pt is a file; load takes the folder"):
        load(tmp_path / "model.pt", rebuild)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"lacks plan.json, .*pytorch_model.bin may be pickles"):
        load(tmp_path / "hub", rebuild)
    (saved / "probe.safetensors").unlink()
    with pytest.raises(StoreError, match=r"it lacks probe.safetensors"):
        load(saved, rebuild)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("preprocessor.json", "{", "preprocessor.json is not valid JSON"),
        ("preprocessor.json", "[]", "must hold a JSON object, but holds list"),
        ("preprocessor.json", "{}", "preprocessing needs size, mean and std"),
        ("preprocessor.json", json.dumps({**SHAPE.to_json(), "classes": [1]}), "classes must be a list of names"),
        ("metrics.json", "{", "metrics.json is not valid JSON"),
        ("probe.safetensors", "{", "is no probe that vitprune wrote"),
    ],
)
def test_malformed_side_files_are_named(saved, name, text, message):
    (saved / name).write_text(text)
    with pytest.raises(StoreError, match=message):
        load(saved, rebuild)


def test_a_folder_in_use_and_a_plan_without_source(saved):
    with pytest.raises(StoreError, match="is in use"):
        save(saved, trained(), plan(), SHAPE)
    assert save(saved, trained(seed=5), plan(), SHAPE, force=True) == saved
    with pytest.raises(PlanError, match="plan has no source"):
        save(saved.parent / "b", trained(), identity(toy_graph()), SHAPE)


def test_nothing_is_saved_of_a_model_that_gives_nan(tmp_path):
    model = trained()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(StoreError, match="output is not finite"):
        save(tmp_path / "out", model, plan(), SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            save(tmp_path / "out", trained(width=64), plan(), SHAPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_unusable_device_is_named(saved):
    with pytest.raises(StoreError, match="device 'nonsense' cannot be used"):
        load(saved, rebuild, device="nonsense")


def test_probe_input_is_the_same_for_ever():
    x = probe_input((2, 3, 5, 7))
    assert x.dtype == torch.float32
    assert x.shape == (2, 3, 5, 7)
    assert probe_input((200_000,)).mean().abs() < 0.01
    assert probe_input((200_000,)).std() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(probe_input((4,)), probe_input((4,), seed=1))
    assert [round(v, 6) for v in probe_input((3,)).tolist()] == [0.406492, -0.787249, -0.787571]


def test_answer_restores_modes():
    model = trained().train()
    assert answer(model, probe_input((2, 1, 4, 6))).shape == (2, 3)
    assert model.training
