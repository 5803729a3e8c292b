"""Reports as a real browser shows them: on a desk and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from browser import FOUND, WHY, Browser
from report_parts import answers, write_model, write_sweep
from vitprune.pipeline.inspect_page import write_inspection
from vitprune.pipeline.inspect_run import run_inspect
from vitprune.pipeline.report_run import run_report

pytestmark = pytest.mark.skipif(FOUND is None, reason=WHY)

VIEWS = {
    "desk": {"width": 1280},
    "desk-dark": {"width": 1280, "dark": True},
    "phone": {"width": 390, "height": 844, "phone": True},
    "phone-dark": {"width": 390, "height": 844, "phone": True, "dark": True},
}

# What is wrong with the page that is shown, as texts.
AUDIT = r"""
(() => {
  const found = [], say = (what, element, more) =>
    found.push(what + ": " + (element.textContent || element.outerHTML).trim().slice(0, 60) + " " + (more || ""));
  const numbers = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = colour => {
    const parts = numbers(colour).slice(0, 3).map(v => v / 255);
    const [r, g, b] = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, alpha = numbers(colour)[3];
      if (colour !== "transparent" && alpha !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const wide = document.scrollingElement;
  if (wide.scrollWidth > innerWidth) say("the page is wider than the window", document.body, wide.scrollWidth);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script, style, title, [hidden]") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const style = getComputedStyle(parent), picture = parent.closest("svg");
    const box = parent.closest(".scroll, .panel");
    for (const rect of range.getClientRects()) {
      const frame = (picture || box || document.documentElement).getBoundingClientRect();
      const room = picture ? 0 : box ? box.scrollWidth - box.clientWidth : 0, slack = picture ? 3 : 1;
      const left = frame.left - (picture || !box ? 0 : box.scrollLeft);
      if (rect.left < left - slack || rect.right > frame.right + room + slack)
        say("text runs out of its place", parent, [rect.left, rect.right, left, frame.right + room].map(Math.round));
      if (picture && (rect.top < frame.top - slack || rect.bottom > frame.bottom + slack)) say("text is cut", parent);
    }
    const own = picture ? parent.getAttribute("style") || "" : "var(";
    if (own.includes("var(")) {  // text on coloured cells has an ink of its own, which another test looks at
      const got = ratio(picture ? style.fill : style.color, behind(picture ? picture.parentElement : parent));
      if (got < 4.5) say("text is too pale", parent, got.toFixed(2));
    }
    if (!picture && parseFloat(style.fontSize) < 12) say("text is too small", parent, style.fontSize);
    if (picture && range.getBoundingClientRect().height < 6) say("text is too small", parent);
  }
  for (const image of document.querySelectorAll("img")) if (!(image.alt || "").trim()) say("no alt text", image);
  for (const picture of document.querySelectorAll("svg"))
    if (picture.getAttribute("role") !== "img" || !(picture.getAttribute("aria-label") || "").trim())
      say("no alt text", picture);
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  if (new Set(ids).size !== ids.length) say("two elements have one id", document.body);
  for (const link of document.querySelectorAll("nav a"))
    if (!document.getElementById(link.hash.slice(1))) say("a link leads nowhere", link);
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report on several runs with hostile names, one on one model, and an inspection."""
    root = tmp_path_factory.mktemp("pages")
    long = ("a-class-with-a-very-long-name-and-no-space-in-it-at-all", "<b>bold</b>", "c", "d")
    write_sweep(root / "sweep", left=["macs=0.1"])
    write_model(
        root / "other", share=0.4, given=answers(5, n=80, images="others"), data={"spec": "elsewhere"}, names=long
    )
    run_report([root / "sweep", root / "other"], root / "report.html", images=False)
    run_report([root / "other"], root / "single.html", images=False)
    write_inspection(run_inspect("shipped:fmnist-vit"), None, root / "inspect.html")
    return {path.stem: path for path in root.glob("*.html")}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["report", "single", "inspect"])
def test_a_page_is_whole(browser: Browser, pages: dict[str, Path], name: str, view: str) -> None:
    browser.open(pages[name], **VIEWS[view])  # type: ignore[arg-type]
    browser.run("for (const folded of document.querySelectorAll('details')) folded.open = true")
    assert browser.run(AUDIT) == []
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    dark = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(21, 24, 29)") == ("dark" in view)


def test_marks_say_what_they_are(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["report"], width=1280)
    place = browser.run(
        "(() => { const mark = document.querySelector('#panel-front-macs use.tip');"
        "mark.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = mark.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # the scroll is over
    assert browser.run("document.getElementById('tip').hidden")
    browser.move(*place)
    assert not browser.run("document.getElementById('tip').hidden")
    told = browser.run("document.getElementById('tip').textContent")
    assert told.startswith(("dense: top-1 ", "sweep macs="))
    box = browser.run(
        "(() => { const r = document.getElementById('tip').getBoundingClientRect(); return [r.left, r.right]; })()"
    )
    assert 0 <= box[0] < box[1] <= 1280
    browser.move(2, 2)
    assert browser.run("document.getElementById('tip').hidden")


def test_the_page_alone_gives_its_pictures(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["single"], width=1280, dark=True)
    links = browser.run("[...document.querySelectorAll('a[data-svg]')].map(a => [a.download, a.href])")
    assert {name for name, _ in links} == {p.name for p in pages["single"].with_name("single_files").glob("*.svg")}
    for _, href in links:
        kind, _, text = href.partition(",")
        assert kind == "data:image/svg+xml"
        picture = ElementTree.fromstring(unquote(text))
        assert picture.find(".//{http://www.w3.org/2000/svg}text") is not None
        assert "var(" not in unquote(text)
    titles = unquote(dict(links)["widths-mlp.svg"])
    assert "blocks.0.mlp:mlp: 25 of 64 kept" in titles  # tips stay


def test_the_audit_finds_faults(browser: Browser, tmp_path: Path) -> None:
    faults = {
        '<p style="color: #999">pale</p>': "text is too pale: pale",
        '<p style="width: 3000px">wide</p>': "the page is wider than the window",
        '<p style="white-space: nowrap; position: absolute; left: 380px">runs out</p>': "text runs out of its place",
        '<p style="font-size: 9px">small</p>': "text is too small: small",
        '<img src="data:," alt="">': "no alt text",
        '<svg viewBox="0 0 9 9"></svg>': "no alt text",
        '<svg role="img" aria-label="x" viewBox="0 0 90 90" width="90"><text x="80">out</text></svg>': "text runs out",
        '<p id="a">x</p><p id="a">y</p>': "two elements have one id",
        '<nav><a href="#gone">gone</a></nav>': "a link leads nowhere: gone",
    }  # fmt: skip
    for number, (fault, says) in enumerate(faults.items()):
        page = tmp_path / f"{number}.html"
        head = '<!doctype html><meta name="viewport" content="width=device-width"><title>x</title>'
        page.write_text(f'{head}<body style="background: white; color: black">{fault}</body>')
        browser.open(page, width=390)
        assert any(says in text for text in browser.run(AUDIT)), (fault, browser.run(AUDIT))
    page.write_text("<!doctype html><script>console.error('bad'); nothing()</script><img src='gone.png'>")
    browser.open(page, width=390)
    assert any("bad" in text for text in browser.complaints())
    assert any("nothing is not defined" in text for text in browser.complaints())
    assert any(url.endswith("gone.png") for url in browser.requests())
