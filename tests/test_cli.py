"""Whole commands on a tiny ViT and a small image folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitprune
from conftest import TINY, environment

SHORT = ("--epochs", "2", "--batch-size", "16", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, image_folder) -> Path:
    """A tiny ViT pruned to half of its MACs by the command."""
    out = tmp_path_factory.mktemp("saved") / "small"
    arguments = ["prune", TINY, "--data", str(image_folder), "--target", "macs=0.5", "--out", str(out), *SHORT]
    subprocess.run([sys.executable, "-m", "vitprune", *arguments], check=True, capture_output=True, env=environment())
    return out


def test_pruned_folder_loads_as_the_librarys_own_module(saved):
    model = vitprune.load(saved)
    assert type(model).__module__.startswith("timm.models")
    plan = vitprune.Plan.from_json((saved / "plan.json").read_text())
    assert plan.obtained["macs"]["ratio"] <= 0.5
    assert sum(p.numel() for p in model.parameters()) == plan.obtained["params"]["value"]
    assert model(torch.randn(5, 3, 16, 16)).shape == (5, 3)
    assert plan.method == "output-error"
    assert plan.settings["seed"] == 0
    assert {"vitprune", "torch", "timm"} - set(plan.versions) <= {"vitprune"}  # not installed when run from source
    metrics = json.loads((saved / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == ["dense", "pruned", "refitted", "fine-tuned"]
    assert len(metrics["history"]["epochs"]) == 2
    assert not saved.with_name("small.work").exists()
    assert (
        "red, green, blue" in (saved / "README.md").read_text()
        or "blue, green, red" in (saved / "README.md").read_text()
    )


def test_a_score_that_needs_images_and_gets_none_stops_before_anything_is_done(command, image_folder):
    asked = ["prune", TINY, "--data", image_folder, "--target", "macs=0.5", "--out", "o", "--epochs", "0"]
    done = command(*asked, "--method", "energy", "--calibration", "0")
    assert done.code == 2
    assert "'energy' needs calibration images, but got none; give some (batches=, or --calibration N" in done.err
    assert "dense" not in done.err and not list(Path().glob("o*"))


def test_prune_prints_asked_and_obtained(command, image_folder):
    done = command("prune", TINY, "--data", image_folder, "--target", "params=0.6", "--epochs", "0", "--out", "o")
    assert done.code == 0, done.err
    assert "asked params=0.6; obtained macs=" in done.out
    assert "dense" in done.out
    assert "obtained params=0." in done.err
    assert "dense: top-1" in done.err
    again = command("prune", TINY, "--data", image_folder, "--target", "params=0.6", "--epochs", "0", "--out", "o")
    assert again.code == 6
    assert again.err.splitlines()[-1].startswith("error: output folder o is in use")
    forced = command(
        *("prune", TINY, "--data", image_folder, "--target", "params=0.8", "--epochs", "0", "--out", "o"),
        *("--force", "--json", "--quiet", "--method", "random", "--scope", "global", "--kinds", "mlp,heads"),
        *("--min-heads", "2", "--round-to", "4", "--protect", "*1*mlp", "--no-refit"),
    )
    assert forced.code == 0, forced.err
    assert forced.err == ""
    assert forced.json["asked"] == {"params": 0.8}
    assert [r["name"] for r in forced.json["rows"]] == ["dense", "pruned"]  # --no-refit
    plan = vitprune.Plan.from_json(Path("o/plan.json").read_text())
    assert {plan.groups[n].kind for n in plan.pruned()} <= {"mlp", "heads"}
    assert plan.settings["protect"] == ["*1*mlp"]
    assert plan.settings["minimum"] == {"heads": 2}


def test_default_output_folder_is_named_after_the_model(command, image_folder):
    done = command("prune", TINY, "--data", image_folder, "--epochs", "0", "--quiet")
    assert done.code == 0, done.err
    assert Path("runs/vit_tiny_patch16_224-macs-0.5/plan.json").is_file()


def test_a_pruned_folder_can_be_pruned_again(command, saved, image_folder):
    done = command("prune", saved, "--data", image_folder, "--target", "macs=0.7", "--out", "twice", *SHORT, "--json")
    assert done.code == 0, done.err
    first = vitprune.Plan.from_json((saved / "plan.json").read_text())
    both = vitprune.Plan.from_json(Path("twice/plan.json").read_text())
    ratio = both.obtained["macs"]["ratio"] / first.obtained["macs"]["ratio"]
    assert ratio == pytest.approx(0.7, abs=0.1)
    assert both.settings["before"] == [{"asked": {"macs": 0.5}, "method": "output-error"}]
    model = vitprune.load("twice")
    assert sum(p.numel() for p in model.parameters()) == both.obtained["params"]["value"]


def test_shares_per_kind_and_per_layer(command, image_folder):
    Path("ratios.toml").write_text('"blocks.0.mlp:mlp" = 0.25\n"blocks.1.attn:block" = 0\n')
    common = ("prune", TINY, "--data", image_folder, "--epochs", "0", "--quiet", "--device", "cpu")
    done = command(*common, "--ratios-file", "ratios.toml", "--kinds", "mlp,v,block", "--json")
    assert done.code == 0, done.err
    assert done.json["asked"] == {}
    plan = vitprune.Plan.from_json(Path("runs/vit_tiny_patch16_224-ratios/plan.json").read_text())
    assert {n: plan.sizes()[n] for n in plan.pruned()} == {"blocks.0.mlp:mlp": 48, "blocks.1.attn:block": 0}
    assert plan.settings["layer_ratios"] == [["blocks.0.mlp:mlp", 0.25], ["blocks.1.attn:block", 0.0]]
    both = command(*common, "--ratio", "heads=0.67,block=0.75", "--target", "macs=0.5", "--out", "both")
    assert both.code == 0, both.err
    assert "asked macs=0.5" in both.out
    plan = vitprune.Plan.from_json(Path("both/plan.json").read_text())
    assert 0.4 < plan.obtained["macs"]["ratio"] <= 0.5
    assert any("no rounding step fits into what is left" in note for note in plan.settings["notes"])  # two blocks
    assert sum(plan.sizes()[n] for n in plan.sizes() if n.endswith(":block")) == 3
    model = vitprune.load("both")
    assert sum(p.numel() for p in model.parameters()) == plan.obtained["params"]["value"]


def test_steps_and_a_run_that_stopped_after_them(command, image_folder, monkeypatch):
    def stop(*_args, **_settings):
        raise KeyboardInterrupt

    options = ("prune", TINY, "--data", image_folder, "--epochs", "0", "--device", "cpu", "--steps", "2")
    options = (*options, "--method", "energy", "--kinds", "mlp,qk,v,heads,block", "--target", "params=0.4")
    with monkeypatch.context() as patched:
        patched.setattr("vitprune.store.save", stop)
        assert command(*options, "--out", "stopped").code == 130
    resumed = command(*options, "--out", "stopped")
    assert resumed.code == 0, resumed.err
    assert "going on with the pruned model" in resumed.err
    straight = command(*options, "--out", "straight", "--json")
    assert "step 1 of 2: macs=" in straight.err
    assert [r["name"] for r in straight.json["rows"]] == ["dense", "pruned", "refitted"]
    one, other = vitprune.load("stopped").state_dict(), vitprune.load("straight").state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)
    plan = vitprune.Plan.from_json(Path("straight/plan.json").read_text())
    assert (plan.settings["steps"], plan.asked) == (2, {"params": 0.4})
    assert sum(v.numel() for v in vitprune.load("straight").parameters()) == plan.obtained["params"]["value"]


def test_train_finetune_eval(command, image_folder):
    done = command(
        *("train", TINY, "--data", image_folder, "--out", "dense", *SHORT[2:], "--epochs", "6", "--warmup", "1"),
        *("--set", "keep=last", "--set", "flip=false", "--optimizer", "adamw"),
    )
    assert done.code == 0, done.err
    training = json.loads(Path("dense/metrics.json").read_text())["training"]
    assert (training["keep"], training["flip"], training["epochs"], training["warmup_epochs"]) == ("last", False, 6, 1)
    assert "trained" in done.out
    found = command("eval", "dense", "--data", image_folder, "--json", "--quiet", "--device", "cpu")
    assert found.code == 0, found.err
    assert found.json["images"] == 18
    assert found.json["split"] == "validation"
    assert found.json["top1"] > 0.5
    more = command("finetune", "dense", "--data", image_folder, "--out", "more", *SHORT, "--json")
    assert more.code == 0, more.err
    assert [r["name"] for r in more.json["rows"]] == ["before", "fine-tuned"]
    assert more.json["rows"][0]["top1"] == pytest.approx(found.json["top1"])
    shown = command("eval", "more", "--data", image_folder)
    assert "top-1" in shown.out
    assert "18 validation images" in shown.out


def test_training_options_reach_the_run(command, image_folder, monkeypatch):
    from vitprune.pipeline import prune_stages, train_run

    seen = []

    def stop(*arguments, **more):
        seen.append((arguments[3], more["upkeep"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_run, "fit", stop)
    monkeypatch.setattr(prune_stages, "fit", stop)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard", "wandb"])
    options = ("--data", image_folder, "--accumulate", "3", "--grad-checkpointing", "--randaugment", "9", "--out", "o")
    options = (*options, "--checkpoint-every", "50", "--tracker", "tensorboard", "--tracker", "wandb", "--no-resume")
    for name in ("train", "finetune", "prune"):
        more = ("--method", "random", "--calibration", "0") if name == "prune" else ()
        assert command(name, TINY, *options, *more).code == 130
        settings, upkeep = seen[-1]
        assert (settings.accumulate, settings.grad_checkpointing, settings.randaugment) == (3, True, 9.0)
        assert (upkeep.checkpoint_every, upkeep.trackers) == (50, ("tensorboard", "wandb"))
        assert upkeep.log_dir == Path("o.logs").absolute()
    assert command("train", TINY, *options, "--log-dir", "logs").code == 130
    assert seen[-1][1].log_dir == Path("logs")
    wrong = command("train", TINY, "--data", image_folder, "--tracker", "tensorbord", "--out", "o", "--no-resume")
    assert wrong.code == 8
    assert "did you mean tensorboard?" in wrong.err


def test_a_teacher_takes_part(command, image_folder, saved):
    bigger = TINY.replace("img_size=16", "img_size=24")
    assert bigger != TINY
    plain = command("train", TINY, "--data", image_folder, "--out", "plain", *SHORT, "--json", "--quiet")
    learned = ("train", TINY, "--data", image_folder, *SHORT, "--json", "--quiet", "--teacher", str(saved))
    full = command(*learned, "--out", "full", "--distill-weight", "1.0", "--distill-temperature", "4")
    other = command(*learned[:-1], bigger, "--out", "other")
    for done in (plain, full, other):
        assert done.code == 0, done.err
    assert len({done.json["history"]["epochs"][0]["loss"] for done in (plain, full, other)}) == 3
    metrics = json.loads(Path("full/metrics.json").read_text())
    assert metrics["teacher"] == str(saved)
    assert (metrics["training"]["distill_weight"], metrics["training"]["distill_temperature"]) == (1.0, 4.0)
    seven = TINY.replace("num_classes=3", "num_classes=7")
    wrong = command(*learned[:-1], seven, "--out", "wrong")
    assert wrong.code == 4
    assert "must score the data's 3 classes, but timm" in wrong.err
    assert "has 7 classes; fine-tune it on the data first (finetune --new-head)" in wrong.err
    assert not Path("wrong").exists()
    tokens = command(*learned[:-1], seven, "--out", "tokens", "--distill-weight", "0", "--feature-weight", "1")
    assert tokens.code == 0, tokens.err
    assert json.loads(Path("tokens/metrics.json").read_text())["training"]["feature_weight"] == 1.0


def test_token_features_in_pruning(command, image_folder):
    options = ("prune", TINY, "--data", image_folder, *SHORT[:-1], "--kinds", "mlp,residual", "--feature-weight", "2")
    done = command(*options, "--feature-layers", "blocks.*", "--out", "o")
    assert done.code == 0, done.err
    assert "token features: blocks.0 like blocks.0, blocks.1 like blocks.1" in done.err
    assert vitprune.load("o").head.in_features < 48
    refused = command(*options, "--no-distill", "--out", "p")
    assert refused.code == 8
    assert "feature_weight 2 needs a teacher" in refused.err
    assert not Path("p.work").exists()


def test_new_head_fits_the_data(command, image_folder):
    spec = TINY.replace("num_classes=3", "num_classes=7")
    refused = command("finetune", spec, "--data", image_folder, "--out", "o", *SHORT)
    assert refused.code == 4
    assert "has 3 classes, but the model has a head of 7; give --new-head" in refused.err
    done = command("finetune", spec, "--data", image_folder, "--out", "o", *SHORT, "--new-head")
    assert done.code == 0, done.err
    assert vitprune.load("o").num_classes == 3


def test_inspect(command):
    done = command("inspect", TINY)
    assert done.code == 0, done.err
    for text in ("parameters", "MACs per image", "heads", "mlp", "not prunable"):
        assert text in done.out
    found = command("inspect", TINY, "--json").json
    model = vitprune.load_model(TINY).model
    assert found["params"] == sum(p.numel() for p in model.parameters())
    kinds = {g["kind"] for g in found["groups"]}
    assert {"heads", "qk", "v", "mlp"} <= kinds
    mlp = next(g for g in found["groups"] if g["kind"] == "mlp")
    assert mlp["params"] == 192 * (48 + 1 + 48)
    assert mlp["macs"] == 17 * 192 * 48 * 2
    assert all(f["reason"] for f in found["frozen"])


def test_bench_measures_dense_and_pruned_in_turns(command, saved):
    done = command("bench", saved, "--batch", "1,4", "--threads", "1", "--repeats", "3", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert [(r["name"], r["batch"]) for r in done.json] == [
        ("dense", 1),
        ("pruned", 1),
        ("dense", 4),
        ("pruned", 4),
    ] or [(r["name"], r["batch"]) for r in done.json] == [("dense", 1), ("dense", 4), ("pruned", 1), ("pruned", 4)]
    for row in done.json:
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["threads"] == 1
    dense, pruned = (next(r for r in done.json if r["name"] == n) for n in ("dense", "pruned"))
    assert pruned["macs"] <= 0.5 * dense["macs"]
    shown = command("bench", TINY, "--batch", "1", "--repeats", "2")
    assert "median ms" in shown.out
    assert "model" in shown.out


def test_python_interface_in_six_lines(tmp_path):
    origin = vitprune.load_model(TINY)
    graph = vitprune.trace(origin)
    scores = vitprune.score(graph, origin, "magnitude-l2")
    plan = vitprune.allocate(graph, scores, "macs=0.5")
    small = vitprune.shrink(origin, graph, plan)
    vitprune.save(tmp_path / "small", small, plan, origin)
    again = vitprune.load(tmp_path / "small")
    x = torch.randn(3, 3, 16, 16)
    assert torch.allclose(again(x), small.eval()(x), atol=1e-6)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in origin.model.parameters())


def test_prune_for_an_own_loop_leaves_the_model_alone():
    model = vitprune.load_model(TINY).model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, plan = vitprune.prune(model, torch.randn(1, 3, 16, 16), target="params=0.5", kinds=["mlp"])
    assert plan.obtained["params"]["ratio"] <= 0.5
    assert sum(p.numel() for p in small.parameters()) == plan.obtained["params"]["value"]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    small.train()(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_masks_and_vtp(command, image_folder, monkeypatch):
    """Both train before they prune; a run that was stopped in the search goes on there."""
    common = ("prune", TINY, "--data", image_folder, "--mask-epochs", "3", "--mask-lr", "0.1", "--epochs", "1")
    common = (*common, "--batch-size", "8", "--device", "cpu", "--round-to", "4", "--amp", "no")
    from vitprune.masks import Search

    after = Search.after_step

    def stop(self, step):
        if step == 8:
            raise KeyboardInterrupt
        after(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Search, "after_step", stop)
        assert command(*common, "--method", "masks", "--target", "macs=0.6", "--out", "one").code == 130
    changed = ("--mask-lr", "0.2", "--mask-patience", "2", "--method", "masks", "--target", "macs=0.5", "--out", "one")
    other = command(*common, *changed)
    assert other.code == 6
    assert "(prune.learned.mask_lr, prune.learned.search.patience, prune.target.value); give --no-resume" in other.err
    one = command(*common, "--method", "masks", "--target", "macs=0.6", "--out", "one", "--json")
    assert one.code == 0, one.err
    assert "going on after epoch 1 of 3" in one.err and "a first model by scores" not in one.err
    assert [r["name"] for r in one.json["rows"]] == ["dense", "pruned", "fine-tuned"]
    plan = vitprune.Plan.from_json(Path("one/plan.json").read_text())
    assert plan.method == "masks" and 0.55 < plan.obtained["macs"]["ratio"] <= 0.6
    assert all(plan.sizes()[n] % 4 == 0 for n in plan.pruned() if not n.endswith("heads"))
    assert sum(p.numel() for p in vitprune.load("one").parameters()) == plan.obtained["params"]["value"]
    two = command(*common, "--method", "vtp", "--rate", "0.4", "--sharing", "inputs", "--out", "two", "--json")
    assert two.code == 0, two.err
    assert "were masked, but cannot be removed" in two.json["notes"][0]
    assert two.json["asked"] == {"rate": 0.4}
    still = ("--mask-lr", "1e-12", "--search-lr", "1e-12", "--mask-epochs", "6", "--mask-patience", "2")
    still = (*still, "--epochs", "0")
    early = command(*common, *still, "--method", "vtp", "--rate", "0.2", "--out", "early")
    assert early.code == 0, early.err
    assert "stopped after epoch 3 of 6: the validation top-1 has not risen, and the cost not fallen, for" in early.err
    for wrong, said in (
        (("--method", "masks", "--steps", "2"), "masks does not take several steps"),
        (("--method", "masks", "--rate", "0.4"), "a rate is for the method vtp"),
        (("--method", "vtp", "--mask-weight", "1"), "no weight of the cost"),
        (("--method", "masks", "--sharing", "all"), "--sharing must be one of residual"),
        (("--method", "masks", "--target", "macs=0.5", "--mask-cost", "params"), "a target names its own cost"),
        (("--method", "masks", "--mask-start", "here"), "must be one of auto, score, rotated, dense, but got 'here'"),
        (("--method", "masks", "--mask-start", "score", "--mask-weight", "1"), "begin with a pruned model at a target"),
        (
            ("--method", "masks", "--mask-start", "score", "--calibration", "0"),
            "scores and rotation need",
        ),
        (("--method", "vtp", "--rate", "0.2", "--mask-start", "rotated", "--calibration", "0"), "and rotation need"),
        (("--method", "vtp", "--rate", "0.4", "--mask-cost", "params"), "vtp has no cost in its loss"),
        (("--method", "masks", "--mask-weight", "1", "--mask-cost", "flops"), "must be one of macs, params, latency"),
    ):
        failed = command(*common, *wrong, "--out", "three")
        assert failed.code == 9 and said in failed.err, failed.err
