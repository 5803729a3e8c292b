"""A page for people: sections of texts, tables, figures and images, in one file that needs no other."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

from vitprune.report.palette import variables
from vitprune.report.panel import Panel
from vitprune.report.svg import inline, page_style, svg_of

PNG_DPI = 180


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    note: bool = False  # of what is to be minded


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or settings as they are typed."""

    text: str
    title: str = ""
    folded: bool = False  # shown when it is asked for


@dataclass(frozen=True, slots=True)
class Beside:
    """A number with its share of the dense model's."""

    text: str
    share: str

    def __str__(self) -> str:
        return f"{self.text} ({self.share})"


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and lines of texts; names stand left, numbers right."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str | Beside]]
    left: frozenset[int] = frozenset({0})  # columns of words
    name: str = ""  # of its CSV file; "": none
    folded: bool = False

    def csv(self) -> str:
        """The table as comma-separated values."""
        return csv_of(self.headings, self.lines)


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """Pictures that belong together, what they show, and the numbers behind them."""

    name: str  # of its CSV file
    caption: str
    panels: Sequence[Panel]
    rows: str  # comma-separated values


@dataclass(frozen=True, slots=True)
class Thumb:
    """One image with what was said of it."""

    png: bytes
    alt: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images under one title."""

    title: str
    thumbs: Sequence[Thumb]


Item = Text | Code | Table | Figure | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading."""

    anchor: str  # unlike those of the others
    title: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that is shown."""

    title: str
    headline: str
    lead: str  # the sentence below the headline
    facts: Sequence[tuple[str, str]]  # number, what it is of
    sections: Sequence[Section]
    missing: Sequence[tuple[str, str]] = ()  # what is not on the page, and why
    made: str = ""  # by what, and when


@dataclass(frozen=True, slots=True)
class Rendered:
    """The page, and the files beside it."""

    html: str
    files: dict[str, bytes]  # name in the folder of files -> content


def csv_of(headings: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(lines)
    return text.getvalue()


def render(page: Page, folder: str) -> Rendered:
    """The page as HTML, and its figures and tables as files of a folder of that name beside it.

    Names, texts and numbers are escaped; the only script is the page's own, by its digest. Equal pages give equal
    files.
    """
    from jinja2 import Environment, StrictUndefined

    beside: dict[str, bytes] = {}
    shown: dict[str, str] = {}
    for section in page.sections:
        for item in section.items:
            if isinstance(item, Figure):
                assert f"{item.name}.csv" not in beside, item.name
                beside[f"{item.name}.csv"] = item.rows.encode("utf-8", "replace")
                for panel in item.panels:
                    assert panel.name not in shown, panel.name
                    whole = svg_of(panel.figure)
                    shown[panel.name] = inline(whole, panel.name, panel.alt)
                    beside[f"{panel.name}.svg"] = whole.encode()
                    beside[f"{panel.name}.png"] = _png(panel)
            elif isinstance(item, Table) and item.name:
                assert f"{item.name}.csv" not in beside, item.name
                beside[f"{item.name}.csv"] = item.csv().encode("utf-8", "replace")
    assets = files("vitprune") / "assets" / "report"
    source, style, script = ((assets / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"kind": lambda item: type(item).__name__, "data": _data}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.from_string(source).render(
        page=page,
        svg=shown,
        folder=quote(folder),
        style=f":root {{ {variables(dark=False)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(dark=True)} }} }}\n{style}",
        script=script,
        digest=digest,
    )
    return Rendered(html.encode("utf-8", "replace").decode(), beside)


def _png(panel: Panel) -> bytes:
    drawn = io.BytesIO()
    with page_style():
        panel.figure.savefig(drawn, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return drawn.getvalue()


def _data(content: str | bytes, kind: str) -> str:
    """A data URI."""
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"
