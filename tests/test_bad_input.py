"""Every wrong input gives one clear line, its exit code, and no half-written folder."""

import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vitprune
import vitprune.store
from conftest import TINY


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny pruned ViT in a folder."""
    out = tmp_path_factory.mktemp("saved") / "small"
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    plan = vitprune.allocate(graph, vitprune.score(graph, origin), "macs=0.6")
    return vitprune.save(out, vitprune.shrink(origin, graph, plan), plan, origin)


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy of the folder that may be broken."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def refused(command):
    """Runs a command that must fail with one line and leave the working folder as it was."""

    def run(code, *arguments):
        before = sorted(p.name for p in Path.cwd().iterdir())
        done = command(*arguments)
        assert done.code == code, (done.code, done.err)
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.err
        assert "Traceback" not in done.err
        assert done.err.splitlines()[-1] == lines[0]
        assert done.out == ""
        assert sorted(p.name for p in Path.cwd().iterdir()) == before
        return lines[0]

    return run


def prune(model, data, *options):
    return ("prune", model, "--data", data, "--epochs", "1", "--out", "out", "--device", "cpu", "--quiet", *options)


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("vit_tiny_patch16_224", 3, "did you mean timm:vit_tiny_patch16_224?"),
        ("timm:vit_tini_patch16_224", 3, "vit_tiny_patch16_224"),
        ("torchvision:vit_b_61", 3, "vit_b_16"),
        ("module:nowhere.mod:make", 3, "nowhere"),
        ("module:torch:nothing", 3, "nothing"),
        ("hf:./nowhere", 3, "nowhere"),
        ("./nowhere", 3, "nowhere"),
        ("timm:vit_tiny_patch16_224?embed_dim=wide", 3, "wide"),
        ("shipped:other", 3, "other"),
    ],
)
def test_unknown_models(refused, image_folder, model, code, text):
    assert text in refused(code, *prune(model, image_folder))
    assert text in refused(code, "inspect", model)


def folder_with(tmp_path, make) -> Path:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                make(root / split / name / f"{i}.png")
    return root


def colour(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)


def test_data_that_is_not_there(refused, tmp_path):
    assert "no folder" in refused(4, *prune(TINY, "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(4, *prune(TINY, "empty"))


def test_data_without_classes(refused, tmp_path):
    (tmp_path / "flat").mkdir()
    colour(tmp_path / "flat" / "a.png")
    assert "class" in refused(4, *prune(TINY, "flat"))


def test_corrupt_image(refused, tmp_path):
    root = folder_with(tmp_path, colour)
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"not an image at all")
    assert ".png" in refused(4, *prune(TINY, root))


def test_truncated_image_is_named_before_anything_is_written(refused, tmp_path):
    root = folder_with(tmp_path, colour)
    path = root / "val" / "b" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    shown = refused(4, "eval", TINY, "--data", root, "--quiet")
    assert "2.png" in shown


def test_one_channel_images(refused, command, tmp_path):
    def grey(path):
        Image.fromarray(np.full((20, 20), 128, dtype=np.uint8)).save(path)

    root = folder_with(tmp_path, grey)
    assert "one-channel" in refused(4, *prune(TINY, root))
    done = command("eval", TINY, "--data", root, "--repeat-channels", "--quiet")
    assert done.code == 0, done.err


def test_class_count(refused, image_folder):
    assert "3 classes, but the model has a head of 5" in refused(
        4, *prune(TINY.replace("classes=3", "classes=5"), image_folder)
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("macs=0", "must be above 0, but got macs=0"),
        ("macs=-1", "must be above 0, but got macs=-1"),
        ("macs=2", "must be in (0, 1]"),
        ("flops=0.5", "must be one of macs, params"),
        ("half", "is not understood"),
        ("macs=0.001", "smallest reachable"),
        ("macs=900G", "is above the dense model's macs"),
    ],
)
def test_targets(command, image_folder, target, text):
    done = command(*prune(TINY, image_folder, "--target", target))
    assert done.code == 5
    assert text in done.err
    assert len([x for x in done.err.splitlines() if x.startswith("error: ")]) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--method", "magnitude-12"), 2, "did you mean 'magnitude-l2'?"),
        (("--scope", "globl"), 5, "--scope must be one of"),
        (("--kinds", "conv"), 5, "kinds must be some of"),
        (("--ratio", "mlp"), 5, "--ratio must be KIND=SHARE"),
        (("--ratio", "mlp=0.5,mlp=0.6"), 5, "--ratio must name a kind once"),
        (("--ratio", "mlp=1.5"), 5, "ratio of mlp must be in (0, 1]"),
        (("--ratio", "mlp=0.001"), 5, "ratio of mlp must be at least"),
        (("--ratios-file", "none.json"), 5, "ratios file none.json cannot be read: No such file"),
        (("--protect", "nothing"), 5, "protect pattern 'nothing' matches no group"),
        (("--lr", "-1"), 8, "lr must be positive"),
        (("--optimizer", "sgd"), 8, "optimizer must be"),
        (("--set", "keep=first"), 8, "keep must be best or last"),
        (("--set", "kept=last"), 8, "--set must be NAME=VALUE with a name of epochs, lr"),
        (("--set", "ema=much"), 8, "--set ema must be of type float, but got 'much'"),
        (("--device", "cuda:99"), 3, "device 'cuda:99' cannot be used"),
        (("--out", "/proc/out"), 6, "cannot write /proc/out"),
    ],
)
def test_settings(command, image_folder, options, code, text):
    done = command(*prune(TINY, image_folder, *options))
    assert (done.code, "Traceback" in done.err) == (code, False), done.err
    assert text in done.err.splitlines()[-1]
    assert not Path("out").exists()


def test_checkpoints_that_do_not_fit(refused, image_folder):
    model = vitprune.load_model(TINY).model
    state = model.state_dict()
    changes = {
        "missing": lambda s: s.pop("blocks.0.attn.qkv.weight"),
        "extra": lambda s: s.update({"blocks.9.norm1.bias": torch.ones(3)}),
        "shape": lambda s: s.update({"blocks.0.attn.proj.bias": torch.ones(3)}),
    }
    for name, change in changes.items():
        broken = {k: v.clone() for k, v in state.items()}
        change(broken)
        save_file(broken, f"{name}.safetensors")
        line = refused(3, *prune(f"{TINY}&checkpoint={name}.safetensors", image_folder))
        assert {"missing": "qkv.weight", "extra": "blocks.9.norm1.bias", "shape": "proj.bias"}[name] in line
    torch.save(model, "pickle.pth")  # a whole module: loading it would run code
    assert "pickle" in refused(3, *prune(f"{TINY}&checkpoint=pickle.pth", image_folder))


def test_saved_tensors_that_do_not_fit(refused, copy, image_folder):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors["other"] = tensors.pop("head.bias")
    save_file(tensors, path, metadata={"plan": vitprune.plan and _digest(copy)})
    line = refused(6, "eval", copy, "--data", image_folder, "--quiet")
    assert "missing: head.bias; extra: other" in line


def _digest(folder):
    from vitprune.store.read import digest

    return digest((folder / "plan.json").read_text())


@pytest.mark.parametrize("edit", [('"heads"', '"head"'), ('"size": ', '"size": 1'), ('"version": 1', '"version": 2')])
def test_edited_plan(refused, copy, image_folder, edit):
    path = copy / "plan.json"
    path.write_text(path.read_text().replace(*edit))
    assert "plan" in refused(6, "eval", copy, "--data", image_folder, "--quiet")
    assert "plan" in refused(6, *prune(copy, image_folder))


def test_an_edited_plan_with_a_right_checksum_is_still_found(refused, copy, image_folder):
    path = copy / "plan.json"
    plan = vitprune.Plan.from_json(path.read_text())
    name = next(n for n in plan.pruned() if plan.groups[n].kind == "mlp")
    kept = plan.groups[name].kept
    path.write_text(path.read_text().replace(str(list(kept[0])), str(list(kept[0][:-1]))))
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors, copy / "model.safetensors", metadata={"plan": _digest(copy)})
    assert "of another shape" in refused(6, "eval", copy, "--data", image_folder, "--quiet")


def test_pickle_in_a_saved_folder(refused, copy, image_folder):
    torch.save({"a": torch.ones(2)}, copy / "model.safetensors")
    assert "is a pickle or torch archive, which is never loaded" in refused(6, "eval", copy, "--data", image_folder)


def test_a_folder_that_names_code_is_not_run(refused, copy, monkeypatch):
    path = copy / "plan.json"
    text = path.read_text()
    start, end = text.index('"source": '), text.index('"versions": ')
    source = '"source": {"kind": "module", "name": "os:system", "options": {"command": "touch ran"}},\n '
    path.write_text(text[:start] + source + text[end:])
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors, copy / "model.safetensors", metadata={"plan": _digest(copy)})
    assert "module:os:system, and loading it would import and call that" in refused(6, "inspect", copy)
    assert not Path("ran").exists()
    with pytest.raises(vitprune.VitpruneError, match="allow_module='os:system'"):
        vitprune.load(copy)


def test_output_folder_in_use(refused, image_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo").write_text("x")
    assert "out is in use" in refused(6, *prune(TINY, image_folder))
    assert "vitprune did not write it; it is not replaced" in refused(6, *prune(TINY, image_folder, "--force"))
    assert (tmp_path / "out" / "photo").read_text() == "x"


def test_full_disk_while_saving(command, image_folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        done = command(*prune(TINY, image_folder, "--target", "macs=0.9", "--epochs", "0"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.code == 6
    assert "cannot write" in done.err.splitlines()[-1]
    assert not Path("out").exists()
    assert [p.name for p in Path.cwd().iterdir()] == ["out.work"]


def test_interrupt_in_the_middle(command, image_folder, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["vitprune.store.save"], "save_tensors", interrupted)
    done = command(*prune(TINY, image_folder, "--epochs", "0"))
    assert done.code == 130
    assert "Traceback" not in done.err
    assert [p.name for p in Path.cwd().iterdir()] == ["out.work"]
