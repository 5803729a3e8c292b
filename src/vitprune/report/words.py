"""Numbers as a reader says them."""

from __future__ import annotations

PARTS = (
    (0.9, "Nine tenths"),
    (0.75, "Three quarters"),
    (2 / 3, "Two thirds"),
    (0.5, "Half"),
    (1 / 3, "A third"),
    (0.25, "A quarter"),
    (0.2, "A fifth"),
    (0.1, "A tenth"),
)
NEAR = 0.0125  # of a part that still has its name


def printable(text: str) -> str:
    """The text, with a replacement for what cannot be shown: control characters and undecodable parts of file names."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def part_of(share: float) -> str:
    """A share as the beginning of a sentence: "Half", "A third", "46 %"."""
    near = min(PARTS, key=lambda part: abs(part[0] - share))
    return near[1] if abs(near[0] - share) <= NEAR else f"{100 * share:.0f} %"


def points_lost(points: float) -> str:
    """Points of top-1, positive where they were gained: "0.3 points lost", "nothing lost", "1 point gained"."""
    size = f"{abs(points):.1f}".removesuffix(".0")
    if size == "0":
        return "nothing lost"
    return f"{size} {'point' if size == '1' else 'points'} {'lost' if points < 0 else 'gained'}"


def plus_minus(mean: float, error: float | None, digits: int = 2) -> str:
    """Of values in 0..1, in percent: "70.50 ± 1.20", without a known error "70.50"."""
    return f"{100 * mean:.{digits}f}" + ("" if error is None else f" ± {100 * error:.{digits}f}")


def signed(points: float) -> str:
    """Points with their sign: "+0.20", "−1.30", "0.00"."""
    text = f"{points:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent, "–" for none."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def short(value: int) -> str:
    """A count with its unit: "17.5 G", "0.343 M"."""
    unit, letter = (1e9, "G") if value >= 1e9 else (1e6, "M")
    return f"{value / unit:.4g} {letter}"
