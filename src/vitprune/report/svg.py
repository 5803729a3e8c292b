"""Matplotlib's figures as SVG: a file of its own, and a part of a page that follows the page's theme."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from vitprune.report.palette import DARK, INK, LINE, SOFT

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
MARK = "tip-"  # what the id of an artist with tips begins with
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names are no formulas
    "svg.hashsalt": "vitprune",  # equal pictures are equal files
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "font.size": 9.0,
    "axes.unicode_minus": True,
}
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


@contextmanager
def page_style() -> Iterator[None]:
    """Figures that are made and drawn meanwhile have the look of a page."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has it; a PNG shows a box
        yield


def tip(artist: Any, texts: Sequence[str]) -> None:
    """Says what is shown when a pointer rests on the artist: one text, or one for each of its marks."""
    artist.set_gid(MARK + base64.urlsafe_b64encode(json.dumps(list(texts)).encode()).decode().rstrip("="))


def svg_of(figure: Any) -> str:
    """The figure as SVG, transparent, tips as titles."""
    drawn = io.StringIO()
    with page_style():
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for child in list(root):
        if child.tag.endswith("metadata"):
            root.remove(child)
    for element in list(root.iter()):
        given = element.get("id", "")
        if given.startswith(MARK):
            del element.attrib["id"]
            coded = given.removeprefix(MARK)
            _spread(element, json.loads(base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))))
    return ElementTree.tostring(root, encoding="unicode")


def _spread(element: ElementTree.Element, texts: Sequence[str]) -> None:
    """Gives every mark its text, or all the first one."""
    marks = [e for e in element.iter() if e.tag == f"{{{SVG}}}use"]
    targets = marks if len(marks) == len(texts) else [element]
    for target, text in zip(targets, texts, strict=False):
        target.set("class", "tip")
        title = ElementTree.Element(f"{{{SVG}}}title")
        title.text = text
        target.insert(0, title)


def inline(svg: str, prefix: str, label: str) -> str:
    """The SVG for a page: ids that begin with `prefix`, colours and fonts of the page, `label` as its text.

    Colours are `var(--name, #rrggbb)`: what stands behind the comma is what `svg` had.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):  # one style for everything would be one for the whole page
        for child in [c for c in parent if c.tag == f"{{{SVG}}}style"]:
            parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            elif name == "style":
                element.set(name, _themed(value))
            if "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))
    width = float(root.get("viewBox", "0 0 400 300").split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("style", f"max-width: {1.5 * width:.0f}px; stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    def coloured(match: re.Match[str]) -> str:
        known = DARK.get(match[0].lower())
        return match[0] if known is None else f"var(--{known[0]}, {match[0]})"

    sized = re.sub(r"font: [^;']*?([\d.]+px) [^;]*", r"font-size: \1", style)
    return re.sub(r"#[0-9a-fA-F]{6}\b", coloured, re.sub(r"font-family: [^;]*;? ?", "", sized))
