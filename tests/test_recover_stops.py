"""Runs that are stopped within an epoch: signals, checkpoints every few steps, what is left of them."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training_parts import BASE, Counter, equal, quarters, small, trained
from vitprune.data import AugmentSettings, open_data
from vitprune.preprocessing import Preprocessing
from vitprune.progress import Lines
from vitprune.recover import TrainError, TrainSettings, Upkeep, fit, interrupt
from vitprune.recover.interrupt import Patience
from vitprune.recover.runtime import Runtime


class Signals(Counter):
    """Sends itself a signal in the backward pass of a step."""

    def __init__(self, step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        super().__init__()
        self.step, self.number, self.times = step, number, times

    def after_backward(self, step: int) -> None:
        """Sends it."""
        if step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        super().after_backward(step)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Shells start what runs in the background with SIGINT ignored."""
    with own_handler(signal.SIGINT, signal.default_int_handler):
        yield


SETTINGS = [
    BASE,
    replace(BASE, ema=0.9, keep="best", mixup=0.2, cutmix=1.0),
    replace(BASE, optimizer="muon", lr=1e-2),
    replace(BASE, batch_size=16, accumulate=4),  # two steps per epoch, of four and two passes
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["adamw", "averaged", "muon", "accumulated"])
def test_a_run_stopped_within_an_epoch_goes_on_bit_by_bit(tmp_path: Path, settings: TrainSettings) -> None:
    straight, history = trained(settings)
    per_epoch = -(-6 // settings.accumulate)
    stop = per_epoch + (0 if settings.accumulate > 1 else 3)  # in the second epoch
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        trained(settings, tmp_path, hook=Signals(stop), progress=Lines(said))
    done = stop + 1 - per_epoch
    assert [p.name for p in tmp_path.iterdir()] == [f"epoch-00001-step-{done:07d}"]
    assert f"stopped after step {stop + 1}; the checkpoint is in" in said.getvalue()
    again = Counter()
    weights, resumed = trained(settings, tmp_path, hook=again, progress=Lines(said))
    assert f"going on after epoch 1, step {done} of {per_epoch} of 3" in said.getvalue()
    assert equal(straight, weights)
    assert again.calls[0] == ("before", stop + 1) and float(again.total) == 3 * per_epoch
    assert [replace(e, seconds=0) for e in resumed.epochs] == [replace(e, seconds=0) for e in history.epochs]
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00002"]


def test_image_files_go_on_bit_by_bit(tmp_path: Path, image_folder: Path) -> None:
    prep = Preprocessing((8, 8), (0.5,), (0.5,), "bilinear", 1)
    settings = replace(BASE, epochs=2, batch_size=8, flip=True, randaugment=9.0, erasing=0.5, erasing_noise=True)
    augment = AugmentSettings.from_json(settings.to_json())
    results = []
    for folder, hook in ((None, None), (tmp_path, Signals(8)), (tmp_path, None)):
        data = open_data(str(image_folder), prep, batch_size=8, augment=augment, workers=1)
        model = small()
        try:
            fit(model, data.train, data.val, settings, hook=hook, checkpoint_dir=folder)
        except KeyboardInterrupt:
            assert [p.name for p in tmp_path.iterdir()] == ["epoch-00001-step-0000003"]
        results.append(model.state_dict())
    assert equal(results[0], results[2]) and not equal(results[0], results[1])


def test_checkpoints_every_few_steps(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Looks(Counter):
        def before_forward(self, step: int) -> None:
            seen.append(sorted(p.name for p in tmp_path.iterdir()) if tmp_path.exists() else [])
            super().before_forward(step)

    with pytest.raises(KeyboardInterrupt):  # as after a kill: nothing is saved at the end
        trained(BASE, tmp_path, hook=Looks(stop_at=11), upkeep=Upkeep(checkpoint_every=4))
    first = "epoch-00000-step-0000004"
    assert seen == [[]] * 4 + [[first]] * 2 + [["epoch-00000"]] * 2 + [["epoch-00001-step-0000002"]] * 4
    weights, _ = trained(BASE, tmp_path, hook=Counter(), upkeep=Upkeep(checkpoint_every=5))
    assert equal(weights, trained(BASE, hook=Counter())[0])


def test_a_stop_during_validation_is_validated_again(tmp_path: Path) -> None:
    class Watched(type(quarters())):  # type: ignore[misc]
        def __iter__(self) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__iter__()

    val = quarters(40, shuffle=False)
    straight = small()
    history = fit(straight, quarters(), val, BASE)
    stopped, watched = small(), quarters(40, shuffle=False)
    watched.__class__ = Watched
    with own_handler(signal.SIGTERM, _leave), pytest.raises(SystemExit):
        fit(stopped, quarters(), watched, BASE, checkpoint_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00000-step-0000006"]
    resumed = fit(stopped, quarters(), val, BASE, checkpoint_dir=tmp_path)
    assert equal(straight.state_dict(), stopped.state_dict())
    assert [e.val_top1 for e in resumed.epochs] == [e.val_top1 for e in history.epochs]


def test_a_signal_that_comes_twice_at_once_counts_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, tmp_path, hook=Signals(8, times=3))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00001-step-0000003"]


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.0)
    hook = Signals(8, times=2)
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, tmp_path, hook=hook)
    assert ("step", 8) not in hook.calls
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00000"]


def test_signals_are_left_alone_without_checkpoints_and_afterwards(tmp_path: Path) -> None:
    hook, before = Signals(8), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, hook=hook)
    assert ("step", 8) not in hook.calls
    trained(replace(BASE, epochs=1), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    with own_handler(signal.SIGINT, signal.SIG_IGN), Patience() as patience:
        os.kill(os.getpid(), signal.SIGINT)
        assert patience.asked is None
    Patience().act()  # nothing came: nothing happens


def test_weights_that_are_not_finite_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Breaks(Counter):
        def after_step(self, step: int) -> None:
            if step == 9:
                with torch.no_grad():
                    model.head.bias[0] = float("inf")

    model = small()
    with pytest.raises(TrainError, match=r"head.bias is not finite after step 9, .* holds the last good checkpoint"):
        fit(
            *(model, quarters(), quarters(40, shuffle=False), BASE),
            hook=Breaks(), checkpoint_dir=tmp_path, upkeep=Upkeep(checkpoint_every=5),
        )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00000"]


def test_infinite_buffers_are_masks_and_nan_is_not(tmp_path: Path) -> None:
    model = small()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    val = quarters(40, shuffle=False)
    fit(model, quarters(), val, replace(BASE, epochs=1), checkpoint_dir=tmp_path)
    model.register_buffer("mask", torch.tensor([0.0, float("nan")]))
    with pytest.raises(TrainError, match="mask is not finite after step 5"):
        fit(model, quarters(), val, replace(BASE, epochs=1), checkpoint_dir=tmp_path / "other")


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Poison(Counter):
        def extra_loss(self, step: int) -> Tensor:
            return torch.tensor(float("nan") if step == 8 else 0.0)

    with pytest.raises(TrainError, match="nan at step 8; lower the learning rate"):
        trained(BASE, tmp_path, hook=Poison(), upkeep=Upkeep(checkpoint_every=7))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-00001-step-0000001"]
    finite, _ = trained(BASE, tmp_path, hook=Counter())
    assert equal(finite, trained(BASE)[0])


def test_upkeep_is_checked() -> None:
    with pytest.raises(TrainError, match="checkpoint_every must not be negative, but got -1"):
        Upkeep(checkpoint_every=-1)


class own_handler:
    """Another handler of a signal for a while."""

    def __init__(self, number: int, handler: Callable[..., None] | signal.Handlers) -> None:
        self.number, self.handler = number, handler

    def __enter__(self) -> None:
        self.before = signal.signal(self.number, self.handler)

    def __exit__(self, *_: object) -> None:
        signal.signal(self.number, self.before)


def _leave(*_: object) -> None:
    raise SystemExit(143)


def test_the_scale_of_fp16_is_kept() -> None:
    scales = []
    state: dict[str, float] = {}
    for start in (8.0, 2.0):
        runtime = Runtime("cpu", "no")
        assert runtime.scaler == {}
        runtime._accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start)
        runtime.scaler = state
        state = json.loads(json.dumps(runtime.scaler))
        scales.append(runtime._accelerator.scaler.get_scale())
    assert scales == [8.0, 8.0]
