"""Tables on standard output: drawn on a terminal, plain text in a pipe or a file."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

WIDTH = 120  # columns at least, so that numbers are not cut


def print_table(
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    title: str = "",
    *,
    left: Collection[int] = (0,),
    sections: Collection[int] = (),
    caption: str = "",
) -> None:
    """Prints the table; texts are taken as they are.

    left: columns of words, the others stand right. sections: numbers of lines that a rule follows. In a pipe there are
    neither frames nor colours, and no line is broken: columns are parted by two spaces or more.
    """
    if not sys.stdout.isatty():
        print(plain(headings, lines, title, left=left, caption=caption))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table(title=title or None, title_justify="left", caption=caption or None)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in left else "right", no_wrap=True)
    for number, line in enumerate(lines):
        table.add_row(*line, end_section=number in sections)
    Console(width=max(console.width, WIDTH), markup=False, highlight=False, emoji=False).print(table)


def plain(
    headings: Sequence[str],
    lines: Sequence[Sequence[str]],
    title: str = "",
    *,
    left: Collection[int] = (0,),
    caption: str = "",
) -> str:
    """The table as text without frames."""
    widths = [max(len(line[i]) for line in (headings, *lines)) for i in range(len(headings))]
    drawn = [title] if title else []
    for line in (headings, *lines):
        cells = (t.ljust(w) if i in left else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True)))
        drawn.append("  ".join(cells).rstrip())
    return "\n".join([*drawn, caption] if caption else drawn)
