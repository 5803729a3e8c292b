"""Training: schedule, losses, resuming bit by bit, hooks, distillation, what stops a run."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from training_parts import BASE, Counter, equal, quarters, small, trained
from vitprune.differences import differing
from vitprune.models import load
from vitprune.progress import Lines
from vitprune.recover import EpochRecord, TrainError, TrainSettings, checkpoint, fit
from vitprune.recover.loss import distillation_loss, make_mixer, task_loss
from vitprune.recover.optimizer import learning_rate, make_optimizer, parameter_groups
from vitprune.recover.runtime import Runtime, resolve_amp
from vitprune.recover.stall import stalled


def test_it_learns_and_repeats() -> None:
    before = torch.get_rng_state()
    weights, history = trained(replace(BASE, epochs=8))
    assert history.epochs[-1].val_top1 > 0.9 > history.epochs[0].val_top1 or history.best_val_top1 > 0.95
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(weights, trained(replace(BASE, epochs=8))[0])
    assert not equal(weights, trained(replace(BASE, epochs=8, seed=1))[0])


@pytest.mark.parametrize(
    "settings",
    [
        BASE,
        replace(BASE, ema=0.9, keep="best", mixup=0.2, cutmix=1.0),
        replace(BASE, optimizer="muon", lr=1e-2),
    ],
    ids=["adamw", "averaged", "muon"],
)
def test_interrupted_runs_go_on_bit_by_bit(tmp_path: Path, settings: TrainSettings) -> None:
    straight, history = trained(settings)
    counter = Counter(stop_at=6 * 2 + 3)  # in the third epoch
    with pytest.raises(KeyboardInterrupt):
        trained(settings, tmp_path, hook=counter)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00001"]
    again = Counter()
    weights, resumed = trained(settings, tmp_path, hook=again)
    assert equal(straight, weights)
    assert again.calls[0] == ("before", 12) and float(again.total) == 18
    assert [replace(e, seconds=0) for e in resumed.epochs] == [replace(e, seconds=0) for e in history.epochs]
    finished, _ = trained(settings, tmp_path)  # nothing is left to do
    assert equal(straight, finished)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    trained(replace(BASE, epochs=1), tmp_path)
    with pytest.raises(TrainError, match=r"another run \(differs in lr\)"):
        trained(replace(BASE, epochs=1, lr=1e-4), tmp_path)
    state = next(tmp_path.glob("epoch-*")) / "state.json"
    state.write_text(state.read_text()[:40])
    with pytest.raises(TrainError, match="damaged.*delete it to start over"):
        trained(replace(BASE, epochs=1), tmp_path)


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(replace(BASE, epochs=1), tmp_path)
    first = load_file(tmp_path / "epoch-00000" / "model.safetensors")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainError, match=r"epoch-00001 could not be written: .*No space left"):
        checkpoint.write(tmp_path, 1, checkpoint.Checkpoint({}, {"model": first}))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00000"]
    assert equal(first, load_file(tmp_path / "epoch-00000" / "model.safetensors"))


def test_hooks_are_called_in_order() -> None:
    counter = Counter()
    trained(replace(BASE, epochs=1), hook=counter)
    assert counter.calls[:4] == [("before", 0), ("backward", 0), ("step", 0), ("before", 1)]
    assert len(counter.calls) == 18


def test_a_hook_may_add_to_the_loss() -> None:
    class Heavy(Counter):
        def extra_loss(self, step: int) -> Tensor:
            return torch.tensor(1000.0 + step)

    _, history = trained(replace(BASE, epochs=1), hook=Heavy())
    assert history.epochs[0].loss > 1000


def test_loss_that_is_not_finite_names_the_step() -> None:
    class Poison(Counter):
        def extra_loss(self, step: int) -> Tensor:
            return torch.tensor(math.nan if step == 9 else 0.0)

    with pytest.raises(TrainError, match="nan at step 9; lower the learning rate"):
        trained(BASE, hook=Poison())


def test_weights_that_no_epoch_beats_are_kept() -> None:
    model = small()
    fit(model, quarters(), quarters(40, shuffle=False), replace(BASE, epochs=10))
    good = {k: v.clone() for k, v in model.state_dict().items()}
    said = io.StringIO()
    harmful = replace(BASE, epochs=2, lr=30.0, warmup_epochs=0.0, clip=0.0, keep="best")
    history = fit(model, quarters(), quarters(40, shuffle=False), harmful, progress=Lines(said))
    assert history.start_val_top1 is not None and history.start_val_top1 > max(e.val_top1 for e in history.epochs)
    assert (history.best_epoch, history.best_val_top1) == (-1, history.start_val_top1)
    assert all(torch.equal(v, good[k]) for k, v in model.state_dict().items())
    assert "no epoch was better on the validation images than the start" in said.getvalue()
    last = fit(model, quarters(), quarters(40, shuffle=False), replace(harmful, keep="last"))
    assert last.start_val_top1 is None and last.best_epoch >= 0
    assert not all(torch.equal(v, good[k]) for k, v in model.state_dict().items())


def test_best_epoch_is_kept() -> None:
    class Spoil(Counter):
        def after_step(self, step: int) -> None:
            if step >= 30:  # the last epoch ends with useless weights
                model.head.weight.data.zero_()
                model.head.bias.data.copy_(torch.tensor([1.0, 0, 0, 0]))

    for keep, good in (("best", True), ("last", False)):
        model = small()
        settings = replace(BASE, epochs=6, keep=keep)
        history = fit(model, quarters(), quarters(40, shuffle=False), settings, hook=Spoil())
        assert history.best_epoch < 5 and history.kept == keep
        with torch.no_grad():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in quarters(40, shuffle=False)) / 40
        assert (right == pytest.approx(history.best_val_top1)) is good


def test_distillation_follows_the_teacher() -> None:
    teacher = small(3)
    fit(teacher, quarters(), quarters(40, shuffle=False), replace(BASE, epochs=10))
    settings = replace(BASE, epochs=8, distill_weight=1.0)
    student = small(4)
    x = next(iter(quarters(40, shuffle=False)))[0]
    with torch.no_grad():
        wanted = teacher(x)
        before = float(distillation_loss(student.eval()(x), wanted, 2.0))
    fit(student, quarters(), quarters(40, shuffle=False), settings, teacher=teacher)
    with torch.no_grad():
        assert float(distillation_loss(student(x), wanted, 2.0)) < 0.5 * before
        assert torch.equal(teacher(x), wanted)  # untouched


def test_losses_by_hand() -> None:
    scores, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0))  # softmax of (2, 0) / 2
    kl = q * math.log(q / p) + p * math.log(p / q)
    assert float(distillation_loss(scores, teacher, 2.0)) == pytest.approx(4 * kl, rel=1e-6)
    assert float(distillation_loss(scores, scores, 3.0)) == pytest.approx(0, abs=1e-7)
    hard = float(task_loss(scores, torch.tensor([0]), 0.0))
    assert hard == pytest.approx(math.log(1 + math.exp(-2.0)), rel=1e-6)
    assert float(task_loss(scores, torch.tensor([[1.0, 0.0]]), 0.0)) == pytest.approx(hard)


def test_mixing_keeps_shapes_and_shares() -> None:
    mixer = make_mixer(replace(BASE, mixup=0.4, cutmix=1.0), 4)
    assert mixer is not None and make_mixer(BASE, 4) is None
    x, y = mixer(torch.rand(8, 1, 8, 8), torch.arange(8) % 4)
    assert x.shape == (8, 1, 8, 8) and y.shape == (8, 4)
    assert torch.allclose(y.sum(1), torch.ones(8))


def test_learning_rate_by_hand() -> None:
    settings = TrainSettings(epochs=10, lr=1.0, warmup_epochs=1, min_lr=0.1)
    rates = [learning_rate(settings, s, 10) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55) and min(rates[10:]) > 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(replace(settings, epochs=1, warmup_epochs=5), 0, 4) == pytest.approx(1 / 3)


def test_parameter_groups() -> None:
    groups = make_optimizer(small(), replace(BASE, weight_decay=0.1)).param_groups
    by_decay = {g["weight_decay"]: sum(p.numel() for p in g["params"]) for g in groups}
    assert by_decay == {0.0: 16 * 3 + 4, 0.1: 64 * 16 + 16 * 4}


def test_layer_decay_by_hand() -> None:
    model = load(
        "timm:vit_tiny_patch16_224?img_size=32&patch_size=8&embed_dim=32&depth=2&num_heads=2&num_classes=7"
    ).model
    scales = {
        id(p): g["lr_scale"] for g in parameter_groups(model, replace(BASE, layer_decay=0.5)) for p in g["params"]
    }
    by_name = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert by_name["cls_token"] == by_name["patch_embed.proj.weight"] == 0.125
    assert by_name["blocks.0.attn.qkv.weight"] == 0.25 and by_name["blocks.1.norm2.bias"] == 0.5
    assert by_name["norm.weight"] == by_name["head.bias"] == 1.0
    with pytest.raises(TrainError, match="list of like blocks"):
        make_optimizer(small(), replace(BASE, layer_decay=0.5))


def test_frozen_parameters_stay() -> None:
    model = small()
    model.body.weight.requires_grad_(False)
    before = model.body.weight.clone()
    fit(model, quarters(), quarters(40, shuffle=False), replace(BASE, epochs=1))
    assert torch.equal(model.body.weight, before)


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_amp("fp16", "cpu") == "fp16"
    for tiles, vectors in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=tiles: has, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=vectors: has, raising=False)
        assert resolve_amp("auto", "cpu") == ("bf16" if tiles or vectors else "no")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert resolve_amp("auto", "cpu") == "no"
    with Runtime("cpu", "bf16").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with Runtime("cpu", "no").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    weights, _ = trained(replace(BASE, epochs=1, amp="bf16"))
    assert all(w.dtype == torch.float32 for w in weights.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, but got 0"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"amp": "fp8"}, "amp must be one of auto, no, bf16, fp16"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon"),
        ({"ema": 1.0}, "ema must be in 0..1"),
        ({"patience": -1}, "patience must be not negative, but got -1"),
        ({"rate": 3}, "unknown training settings: rate"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        TrainSettings.from_json(BASE.to_json() | change)


def test_settings_survive_json() -> None:
    assert TrainSettings.from_json(BASE.to_json()) == BASE


def test_missing_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match="torch sees no CUDA device; use device 'cpu'"):
        trained(BASE, device="cuda")


def records(*values: tuple[float, float | None, bool]) -> list[EpochRecord]:
    """Records of epochs by (validation top-1, cost, settled)."""
    return [EpochRecord(i, 1.0, 0.1, top1, 1.0, 0.0, cost, done) for i, (top1, cost, done) in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([(0.5, None, True), (0.6, None, True), (0.6, None, True), (0.55, None, True)], 4),  # two epochs without a rise
        ([(0.5, None, True), (0.4, None, True), (0.51, None, True), (0.5, None, True)], 0),
        ([(0.9, 1.0, True), (0.8, 0.8, True), (0.7, 0.6, True), (0.6, 0.4, True)], 0),  # the cost falls
        ([(0.9, 1.0, True), (0.5, 0.6, True), (0.6, 0.6, True), (0.7, 0.6, True)], 0),  # a smaller model gets better
        ([(0.9, 1.0, True), (0.5, 0.6, True), (0.5, 0.5995, True), (0.5, 0.61, True)], 4),
        ([(0.5, 1.0, True), (0.5, 0.9994, True), (0.5, 0.9988, True), (0.5, 0.9982, True)], 0),  # slowly
        ([(0.5, 0.6, False), (0.5, 0.6, False), (0.5, 0.6, False), (0.5, 0.6, True), (0.5, 0.6, True)], 5),
    ],
)
def test_when_nothing_moves_any_more(values: list[tuple[float, float | None, bool]], ends: int) -> None:
    """`ends`: after how many epochs a patience of two is at its end; 0: not yet."""
    assert [n for n in range(len(values) + 1) if stalled(records(*values[:n]), 2)] == ([ends] if ends else [])
    assert not stalled(records(*values * 3), 0)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_patience_ends_a_training_that_has_stalled(tmp_path: Path, keep: str) -> None:
    settings = replace(BASE, epochs=40, patience=3, keep=keep)
    said = io.StringIO()
    straight, history = trained(settings, progress=Lines(said))
    best = max(history.epochs, key=lambda e: (e.val_top1, -e.epoch)).epoch
    assert len(history.epochs) == best + 4 < 40
    assert f"stopped after epoch {best + 4} of 40: the validation top-1 has not risen for 3 epochs" in said.getvalue()
    for stop in (6 * (best + 2) + 2, 6 * (best + 3) + 5):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            trained(settings, folder, hook=Counter(stop_at=stop))
        weights, resumed = trained(settings, folder, hook=Counter())
        assert equal(straight, weights)
        assert [replace(e, seconds=0) for e in resumed.epochs] == [replace(e, seconds=0) for e in history.epochs]
    assert equal(straight, trained(settings, folder, hook=Counter())[0])  # nothing is left to do


def test_checkpoints_from_before_a_setting_go_on(tmp_path: Path) -> None:
    straight, _ = trained(BASE)
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, tmp_path, hook=Counter(stop_at=13))
    path = next(tmp_path.glob("epoch-*")) / "state.json"
    state = json.loads(path.read_text())
    del state["run"]["settings"]["patience"]
    for record in state["records"]:
        del record["cost"], record["settled"]
    path.write_text(json.dumps(state))
    assert equal(straight, trained(BASE, tmp_path, hook=Counter())[0])
    with pytest.raises(TrainError, match=r"differs in patience"):
        trained(replace(BASE, patience=2), tmp_path)


def test_settings_that_came_later_differ_when_they_are_on() -> None:
    found = {"a": 1, "b": {"c": None, "gone": 0}}
    assert differing(found, {"a": 1, "b": {"c": None, "new": False}, "also": []}) == []
    assert differing(found, {"a": 0, "b": {"c": 0, "new": True}}) == ["a", "b.c", "b.new"]
    assert differing(found, {"a": 1, "b": None}) == ["b"]
