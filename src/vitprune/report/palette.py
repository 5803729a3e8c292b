"""Colours of pictures, and what they become on a page that is light or dark."""

from __future__ import annotations

from collections.abc import Sequence

# drawn in (the light theme), name of the page's variable, the dark theme's colour
INK, SOFT, LINE, GRID, PAPER = "#24292f", "#59616c", "#8a929d", "#e6e9ee", "#fdfdfd"
BLUE, RUST, DENSE_BAR = "#2464ad", "#b04a2f", "#cfd6e0"
SERIES = (BLUE, "#a85f00", "#2c7a4b", "#7a52a8", "#8a6420", "#b8477f", "#12808a", "#59616c")
DARK = {
    INK: ("ink", "#e8eaed"),
    SOFT: ("soft", "#a9b1bc"),
    LINE: ("line", "#6d7682"),
    GRID: ("grid", "#2a3038"),
    PAPER: ("paper", "#15181d"),
    BLUE: ("blue", "#74aef0"),
    RUST: ("rust", "#f08a6c"),
    DENSE_BAR: ("bar", "#3d4652"),
    SERIES[1]: ("series-1", "#eda84f"),
    SERIES[2]: ("series-2", "#74c795"),
    SERIES[3]: ("series-3", "#bd9ced"),
    SERIES[4]: ("series-4", "#cfae72"),
    SERIES[5]: ("series-5", "#ee8fc0"),
    SERIES[6]: ("series-6", "#5cc7d1"),
}
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def variables(dark: bool) -> str:
    """The CSS variables of a theme."""
    return " ".join(f"--{name}: {other if dark else light};" for light, (name, other) in DARK.items())


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, whichever is easier to read on (red, green, blue) in 0..1; their contrast is 4.5 or more."""
    return "#000000" if (luminance(colour) + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of (red, green, blue) in 0..1. Source: WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
