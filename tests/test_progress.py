"""Progress: lines at their time, bars that close, silence."""

from __future__ import annotations

import io
import sys

import pytest

from vitprune.errors import ModelError
from vitprune.preprocessing import Preprocessing, fit_channels
from vitprune.progress import Bars, Lines, Silent, make_progress


def test_lines_say_the_result_and_the_way_there() -> None:
    stream = io.StringIO()
    progress = Lines(stream, every=0.0)
    progress.start("epoch 1/2", 3)
    progress.advance(2, loss=0.12345)
    progress.done("top-1 91 %")
    progress.line("note")
    assert stream.getvalue().splitlines() == ["epoch 1/2 2/3  loss 0.1235", "epoch 1/2: top-1 91 %", "note"]


def test_lines_keep_quiet_between_their_times() -> None:
    stream = io.StringIO()
    progress = Lines(stream, every=60.0)
    progress.start("epoch", 100)
    for _ in range(100):
        progress.advance()
    progress.done()
    assert stream.getvalue() == ""


def test_bars_open_and_close(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Bars()
    progress.advance()  # before any step: nothing
    progress.start("epoch", 2)
    progress.advance(loss=1.0)
    progress.line("[inside]")
    progress.start("next", 1)
    progress.done("over")
    assert "[inside]" in capsys.readouterr().err


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(quiet=True), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_progress(), Bars)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(make_progress(), Lines)


def test_preprocessing_is_checked() -> None:
    prep = Preprocessing((8, 6), (0.5,), (0.2,), channels=1)
    assert Preprocessing.from_json(prep.to_json()) == prep
    assert fit_channels([0.1, 0.2, 0.3], 1) == (pytest.approx(0.2),)
    with pytest.raises(ModelError, match="one value per channel: 3"):
        Preprocessing((8, 8), (0.5,), (0.5,))
    with pytest.raises(ModelError, match="interpolation must be one of"):
        Preprocessing((8, 8), (0.5,), (0.5,), "cubic", 1)
    with pytest.raises(ModelError, match="needs size, mean and std"):
        Preprocessing.from_json({"size": 3})
