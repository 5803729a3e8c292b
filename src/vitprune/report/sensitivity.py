"""What is lost when one part alone is smaller: rows, and tables of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vitprune.markdown import markdown_table
from vitprune.normal import Z95
from vitprune.report.terminal import print_table

COSTS = ("macs", "params", "latency")
WHOLE = "all"  # in tables, the block of what stands in none
NATS = "thousandths of a nat"
MEANING = (
    "One part of one block is smaller, everything else is whole. Divergence is that of the class probabilities from "
    f"the dense model's, in {NATS}, mean over the images; it shows what top-1 cannot yet."
)


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """One part at one fraction removed; without numbers: nothing was measured of the part."""

    part: str  # "mlp", "qk+v", "residual", ...
    block: int | None  # None: all blocks, or none
    asked: float | None = None  # fraction of its units to remove
    removed: float | None = None  # the fraction that the rounding permits
    divergence: float | None = None  # nats, from the dense model's predictions
    lost: float | None = None  # points of top-1, of 100; below 0: gained
    error: float | None = None  # standard error of `lost`
    saved: Mapping[str, float] = field(default_factory=dict)  # metric -> share of the dense model's cost that goes

    @property
    def surely(self) -> bool:
        """Whether the 95 % interval of `lost` leaves out 0."""
        return self.lost is not None and self.error is not None and abs(self.lost) > Z95 * self.error


@dataclass(frozen=True, slots=True)
class SensitivityLine:
    """One part at one fraction, in all blocks."""

    part: str
    asked: float | None  # None: nothing was measured of the part
    cells: Mapping[int | None, SensitivityRow]  # by block, as far as measured

    @property
    def label(self) -> str:
        """The part and what is really removed: "mlp −25 %", "heads −17 … −33 %" where blocks differ."""
        removed = sorted(
            {f"{100 * row.removed:.0f}" for row in self.cells.values() if row.removed is not None}, key=int
        )
        if not removed:
            return f"{self.part}, not measured"
        return f"{self.part} −{removed[0]} %" if len(removed) == 1 else f"{self.part} −{removed[0]} … −{removed[-1]} %"


def sensitivity_lines(rows: Sequence[SensitivityRow]) -> tuple[SensitivityLine, ...]:
    """The lines of a heat map: by part in the rows' order, what stands in no block last, then by fraction."""
    parts = dict.fromkeys(row.part for row in sorted(rows, key=lambda row: row.block is None))
    lines = []
    for part in parts:
        mine = [row for row in rows if row.part == part]
        asked: list[float | None] = [*sorted({row.asked for row in mine if row.asked is not None})]
        for fraction in asked or [None]:
            cells = {row.block: row for row in mine if row.asked == fraction and row.divergence is not None}
            lines.append(SensitivityLine(part, fraction, cells))
    return tuple(lines)


def sensitivity_blocks(rows: Sequence[SensitivityRow]) -> tuple[int, ...]:
    """All blocks, measured or not."""
    return tuple(sorted({row.block for row in rows if row.block is not None}))


def nats(value: float) -> str:
    """Divergence as text, in thousandths of a nat: "181", "8.4", "0.17"."""
    shown = 1000 * max(value, 0.0)
    return f"{shown:.0f}" if shown >= 9.95 else f"{shown:.1f}" if shown >= 0.995 else f"{shown:.2f}"


def points(row: SensitivityRow) -> str:
    """Points of top-1 lost as text: "0.34", "-0.10"; below -0 is 0."""
    return "" if row.lost is None else f"{row.lost:.2f}".replace("-0.00", "0.00")


def sensitivity_json(rows: Sequence[SensitivityRow]) -> list[dict[str, Any]]:
    """The rows as JSON values; what was not measured is left out."""
    return [{k: dict(v) if k == "saved" else v for k, v in asdict(row).items() if v is not None} for row in rows]


def sensitivity_csv(rows: Sequence[SensitivityRow]) -> str:
    """A line per row; empty where nothing was measured."""
    costs = [c for c in COSTS if any(c in row.saved for row in rows)]
    columns = [
        "part",
        "block",
        "asked",
        "removed",
        "divergence",
        "top1_lost",
        "top1_error",
        *(f"{c}_saved" for c in costs),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        numbers = [row.asked, row.removed, row.divergence, row.lost, row.error, *(row.saved.get(c) for c in costs)]
        block = "" if row.block is None else row.block
        writer.writerow([row.part, block, *("" if n is None else f"{n:.6g}" for n in numbers)])
    return text.getvalue()


def sensitivity_tables(rows: Sequence[SensitivityRow]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Title -> headings and lines of divergence, top-1 and MACs saved: columns are parts and fractions, lines blocks.

    "-" where nothing was measured, "" where a block has no such part.
    """
    columns, blocks = sensitivity_lines(rows), sensitivity_blocks(rows)
    have = {(row.part, row.block) for row in rows}
    places: list[int | None] = [*blocks, *([None] if any(row.block is None for row in rows) else [])]
    cost = "MACs saved, % of the dense model's"
    found = {}
    for title in (f"Divergence, {NATS}", "Top-1 lost, points", cost):
        lines = []
        for block in places:
            line = [WHOLE if block is None else str(block)]
            for column in columns:
                row = column.cells.get(block)
                if row is None or row.divergence is None:
                    line.append("-" if (column.part, block) in have else "")
                elif title == cost:
                    line.append(f"{100 * row.saved.get('macs', 0.0):.2f}")
                else:
                    line.append(nats(row.divergence) if title.startswith("Div") else points(row))
            lines.append(line)
        found[title] = (["block", *(c.label for c in columns)], lines)
    return found


def sensitivity_markdown(rows: Sequence[SensitivityRow], title: str, *, images: int = 0, picture: str = "") -> str:
    """A page: picture and tables."""
    parts = [f"# {title}", "", MEANING, ""]
    errors = [row.error for row in rows if row.error is not None]
    if errors:
        of = f" of {images:,} images" if images else ""
        parts += [
            f"Points of top-1 are{of}, paired with the dense model's answers; they are known to "
            f"± {Z95 * min(errors):.2f} at best and ± {Z95 * max(errors):.2f} at worst (95 %).",
            "",
        ]
    parts += [f"![Divergence and top-1 lost, by part and block]({picture})", ""] if picture else []
    for name, (headings, lines) in sensitivity_tables(rows).items():
        parts += [f"## {name}", "", *markdown_table(headings, lines), ""]
    return "\n".join(parts).rstrip() + "\n"


def print_sensitivity(rows: Sequence[SensitivityRow], title: str = "") -> None:
    """Prints the table of divergence, and that of top-1, to standard output."""
    for name, (headings, lines) in list(sensitivity_tables(rows).items())[:2]:
        print_table(headings, lines, f"{title}: {name}" if title else name, left=())
