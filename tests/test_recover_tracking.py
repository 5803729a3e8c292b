"""What a run tells on its way: trackers, and the facts beside the bar."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from training_parts import BASE, Counter, trained
from vitprune.progress import Lines, Silent
from vitprune.recover import TrainError, Upkeep
from vitprune.recover.meter import Meter, duration
from vitprune.recover.tracking import check_trackers


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Calls of a tracker "kept"."""
    from accelerate import tracking

    calls: list[tuple[str, Any]] = []

    class Keeps(tracking.GeneralTracker):
        name = "kept"
        requires_logging_directory = False

        def __init__(self, run_name: str, **more: Any) -> None:
            super().__init__()
            calls.append(("open", (run_name, more)))

        @property
        def tracker(self) -> list[tuple[str, Any]]:
            return calls

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            calls.append(("settings", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            calls.append(("log", (step, values)))

        def finish(self) -> None:
            calls.append(("finish", None))

    if not hasattr(tracking, "register_tracker_class"):
        pytest.skip("this accelerate takes no trackers by name")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Keeps)
    return calls


def test_a_tracker_gets_settings_steps_and_epochs(kept: list[tuple[str, Any]]) -> None:
    _, history = trained(BASE, upkeep=Upkeep(trackers=("kept",)))
    assert kept[0][0] == "open" and kept[-1] == ("finish", None)
    assert ("settings", BASE.to_json()) in kept
    logged = [value for name, value in kept if name == "log"]
    train = {step: values for step, values in logged if "train/loss" in values}
    val = {step: values for step, values in logged if "val/top1" in values}
    assert list(train) == list(val) == [6, 12, 18]
    for step, record in zip(train, history.epochs, strict=True):
        assert train[step]["train/loss"] == pytest.approx(record.loss)  # one look per epoch
        assert train[step]["train/top1"] == record.train_top1
        assert train[step]["train/lr"] == record.lr
        assert train[step]["train/images_per_second"] > 0
        assert val[step]["val/top1"] == record.val_top1
    assert [v["val/epoch"] for v in val.values()] == [1, 2, 3]


def test_trackers_are_closed_when_a_run_fails(kept: list[tuple[str, Any]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, upkeep=Upkeep(trackers=("kept",)), hook=Counter(stop_at=3))
    assert kept[-1] == ("finish", None)


def test_trackers_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"one of .*tensorboard.*, but got 'tensorbord'; did you mean tensorboard\?"):
        trained(BASE, upkeep=Upkeep(trackers=("tensorbord",)))
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(TrainError, match=r"tensorboard needs a package .*: pip install 'vitprune\[tensorboard\]'"):
        check_trackers(["tensorboard"], tmp_path)
    with pytest.raises(TrainError, match="wandb needs a package that is not installed: pip install 'wandb'"):
        check_trackers(["wandb"], tmp_path)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(TrainError, match=r"tensorboard writes files and needs a folder for them"):
        check_trackers(["tensorboard"], None)


def test_tensorboard_forgets_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'vitprune[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    upkeep = Upkeep(trackers=("tensorboard",), log_dir=tmp_path / "logs")
    with pytest.raises(KeyboardInterrupt):
        trained(BASE, tmp_path / "work", upkeep=upkeep, hook=Counter(stop_at=13))
    _, history = trained(BASE, tmp_path / "work", upkeep=upkeep, hook=Counter())
    read = EventAccumulator(str(tmp_path / "logs" / "vitprune"))
    read.Reload()
    events = read.Scalars("val/top1")
    assert [e.step for e in events] == [6, 12, 18]
    assert [e.value for e in events] == pytest.approx([e.val_top1 for e in history.epochs])


def test_facts_beside_the_bar() -> None:
    class Facts(Silent):
        def __init__(self) -> None:
            self.seen: list[dict[str, Any]] = []

        def advance(self, n: int = 1, **facts: Any) -> None:
            self.seen.append(facts)

    progress = Facts()
    _, history = trained(replace(BASE, epochs=2), progress=progress)
    last = progress.seen[-1]
    assert last["loss"] == history.epochs[-1].loss
    assert last["top-1"] == f"{100 * history.epochs[-1].train_top1:.1f} %"
    assert last["images/s"] > 0 and last["left"] == "0:00"
    said = io.StringIO()
    trained(replace(BASE, epochs=2), progress=Lines(said, every=0.0))
    assert "epoch 2/2 6/6  loss " in said.getvalue() and "images/s " in said.getvalue()


def test_the_meter_by_hand() -> None:
    meter = Meter()
    for loss, right in ((1.0, 3), (2.0, 5)):
        meter.add(torch.tensor(loss), torch.tensor(right), 8)
    meter.look(0, lambda t: t, 2)  # of two processes that saw the same
    assert (meter.steps, meter.mean_loss, meter.top1, meter.images, meter.recent) == (2, 1.5, 0.5, 32, 1.5)
    meter.add(torch.tensor(4.0), torch.tensor(0), 8)
    meter.look(0, lambda t: t, 2)
    assert (meter.recent, meter.mean_loss) == (4.0, pytest.approx(7 / 3))
    assert Meter(**meter.to_json()).mean_loss == meter.mean_loss  # type: ignore[arg-type]
    meter.add(torch.tensor(float("inf")), torch.tensor(0), 8)
    with pytest.raises(TrainError, match="the loss became inf at step 103"):
        meter.look(100, lambda t: t, 1)
    assert duration(59.6) == "1:00" and duration(3723) == "1:02:03"
