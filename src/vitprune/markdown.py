"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """The lines of the table. left: columns of words; the others stand right."""
    ruler = [" --- |" if place in left else " ---: |" for place in range(len(headings))]
    parts = ["| " + " | ".join(headings) + " |", "|" + "".join(ruler)]
    return parts + ["| " + " | ".join(line) + " |" for line in lines]
