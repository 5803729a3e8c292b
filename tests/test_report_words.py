"""What a report says of numbers, and colours that can be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from vitprune.report.palette import DARK, PAPER, ink_on, luminance
from vitprune.report.words import part_of, points_lost, signed


def test_words() -> None:
    assert [part_of(s) for s in (0.4989, 0.333, 0.25, 0.46, 0.749)] == [
        "Half",
        "A third",
        "A quarter",
        "46 %",
        "Three quarters",
    ]
    assert [points_lost(p) for p in (-0.3, -1.0, 0.04, -0.04, 2.0)] == [
        "0.3 points lost", "1 point lost", "nothing lost", "nothing lost", "2 points gained",
    ]  # fmt: skip
    assert [signed(p) for p in (0.0, -0.001, 1.5, -2.25)] == ["0.00", "0.00", "+1.50", "−2.25"]


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2."""
    a, b = sorted((luminance(rgb(one)), luminance(rgb(other))), reverse=True)
    return (a + 0.05) / (b + 0.05)


def test_colours_can_be_told_from_the_page() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # WCAG's own example
    paper = DARK[PAPER][1]
    for light, (name, dark) in DARK.items():
        if name in ("ink", "soft", "blue"):  # of texts
            assert contrast(light, PAPER) >= 4.5 and contrast(dark, paper) >= 4.5, name
        elif name not in ("paper", "grid", "bar"):  # of marks
            assert contrast(light, PAPER) >= 3 and contrast(dark, paper) >= 3, name
    for grey in np.linspace(0, 1, 101):
        for colour in ((grey, grey, grey), (grey, 0.2, 0.7), (0.9, grey, 0.1)):
            ink = luminance(rgb(ink_on(colour)))
            a, b = sorted((ink, luminance(colour)), reverse=True)
            assert (a + 0.05) / (b + 0.05) >= 4.5
