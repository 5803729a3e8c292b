"""Reports: what stands on the page against what the runs' files say; hostile names; bad input."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from report_parts import HOSTILE, answers, top1_of, write_model, write_sweep
from vitprune.errors import StoreError
from vitprune.pipeline.report_images import images_section
from vitprune.pipeline.report_read import labels_of, read_run
from vitprune.pipeline.report_run import page_of, read_runs, run_report
from vitprune.report import Answers
from vitprune.report.classes import class_rows, confusion, pair_rows
from vitprune.report.paired import by_image
from vitprune.report.words import points_lost, signed

PICTURES = "Images whose prediction changed"
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Holds that tags close in order; keeps tables by their titles, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str | None]] = []
        self.links: list[dict[str, str | None]] = []
        self.scripts = 0
        self.ids: list[str] = []
        self._table: list[list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.append(str(given["id"]))
        if tag == "img":
            self.images.append(given)
        elif tag == "a":
            self.links.append(given)
        elif tag == "script":
            self.scripts += 1
        if tag not in VOID:
            self.open.append(tag)
        if given.get("role") == "region":
            self._table = self.tables.setdefault(str(given["aria-label"]), [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(v) for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
            if self._table and self._table[-1] and self.open[-1] in ("td", "th", "small"):
                self._table[-1][-1] += data


def read(path: Path) -> Reader:
    found = Reader()
    found.feed(path.read_text("utf-8"))
    assert found.open == []
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page of one model, and its folder."""
    root = tmp_path_factory.mktemp("one")
    folder = write_model(root / "run")
    run_report([folder], root / "page.html")
    return root / "page.html", folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a sweep and a model that saw other images."""
    root = tmp_path_factory.mktemp("several")
    write_sweep(root / "sweep", left=["macs=0.1"])
    write_model(root / "other", share=0.4, given=answers(5, n=80, images="others"), data={"spec": "elsewhere"})
    run_report([root / "sweep", root / "other"], root / "page.html")
    return root / "page.html"


def test_tables_hold_the_runs_numbers(one: tuple[Path, Path]) -> None:
    page, folder = one
    found, rows = read(page), json.loads((folder / "metrics.json").read_text())["rows"]
    table = found.tables["Top-1 is of 60 images"]
    assert [line[0] for line in table[1:]] == ["dense", "pruned", "fine-tuned"]
    for line, row in zip(table[1:], rows, strict=True):
        cells = dict(zip(table[0], line, strict=True))
        assert cells["top-1 %"] == f"{100 * row['top1']:.2f}"
        assert cells["95 % interval"] == "{:.2f} to {:.2f}".format(*(100 * v for v in row["ci95"]))
        share = "" if row is rows[0] else f" {100 * row['macs'] / rows[0]['macs']:.1f}%"
        assert cells["MACs"] == f"{row['macs'] / 1e6:.4g} M{share}"
        share = "" if row is rows[0] else f" {100 * row['latency_ms'] / rows[0]['latency_ms']:.1f}%"
        assert cells["ms, batch 1"] == f"{row['latency_ms']:.2f}{share}"
        assert cells["peak MiB"].startswith(f"{row['memory_mib']:.1f}")
    asked = dict(zip(*found.tables["Asked, and obtained as a share of the dense model"][:2], strict=True))
    assert (asked["asked"], asked["MACs"], asked["scope"]) == ("macs=0.5", "0.5000", "local")
    text = " ".join(found.texts)
    assert "rounded <b>up</b>" in text  # a note of the plan
    assert "vitprune prune timm:vit --data fashion-mnist-sample --out <here>" in text
    assert "torch 2.15.0" in text


def test_the_headline_and_the_paired_difference(one: tuple[Path, Path]) -> None:
    page, _ = one
    dense, last = answers(0)
    points = 100 * (top1_of(last) - top1_of(dense))
    pair = by_image([(last.hits(), dense.hits())])
    assert pair is not None
    found = read(page)
    text = " ".join(found.texts)
    assert f"Half of the MACs, {points_lost(points)}" in text
    line = found.tables["Difference from the dense model, image by image"][1]
    assert line[1:3] == [signed(points), f"{signed(100 * pair.low)} to {signed(100 * pair.high)}"]  # type: ignore[operator]


def test_files_lie_beside_and_say_the_same(one: tuple[Path, Path]) -> None:
    page, folder = one
    beside = page.with_name("page_files")
    plan = json.loads((folder / "plan.json").read_text())
    widths = rows_of(beside / "widths.csv")
    assert {r["group"]: int(r["kept"]) for r in widths} == {n: len(g["kept"][0]) for n, g in plan["groups"].items()}
    history = json.loads((folder / "metrics.json").read_text())["history"]
    curves = rows_of(beside / "curves.csv")
    assert [float(r["val_top1"]) for r in curves] == [0.75, *(e["val_top1"] for e in history["epochs"])]
    for path in beside.glob("*.svg"):
        assert ElementTree.fromstring(path.read_text("utf-8")).tag.endswith("svg")
        assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    found = read(page)
    for link in found.links:  # tables are in the page itself, pictures beside it
        href, name = str(link["href"]), link.get("download")
        if name is not None:
            assert (beside / name).is_file()
            if href.startswith("data:text/csv;base64,"):
                assert base64.b64decode(href.partition(",")[2]) == (beside / name).read_bytes()
            else:
                assert href == f"page_files/{name}"
    assert len(found.ids) == len(set(found.ids))
    assert len(page.read_bytes()) < 500_000


def test_hostile_names_are_texts(one: tuple[Path, Path]) -> None:
    page, _ = one
    raw, found = page.read_text("utf-8"), read(page)
    assert found.scripts == 1
    assert "<script>alert" not in raw
    text = " ".join(found.texts)
    for name in HOSTILE:
        assert name in text
    assert "49" not in {t.strip() for t in found.texts}  # {{ 7*7 }} is not worked out


def test_classes_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    dense = Answers.of("x", labels, np.array([0, 0, 0, 1, 1, 1, 2, 0]))
    pruned = Answers.of("x", labels, np.array([0, 1, 1, 1, 1, 0, 2, 2]))
    rows = class_rows(dense, pruned, ("a", "b"))
    assert [(r.name, r.images, r.dense, r.pruned, r.change) for r in rows] == [
        ("a", 4, 0.75, 0.25, -50.0), ("b", 2, 1.0, 0.5, -50.0), ("class 2", 2, 0.5, 1.0, 50.0),
    ]  # fmt: skip
    assert confusion(dense, 3).tolist() == [[3, 1, 0], [0, 2, 0], [1, 0, 1]]
    pairs = [(p.label, p.predicted, p.dense, p.pruned) for p in pair_rows(dense, pruned, ("a", "b"))]
    assert pairs == [("a", "b", 1, 3), ("b", "a", 0, 1)]


@pytest.mark.parametrize("classes", [4, 256, 257, 70_000])
def test_answers_survive_json(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, predicted = rng.integers(0, classes, (2, 50))
    labels[0] = classes - 1
    given = Answers.of("id", labels, predicted)
    again = Answers.from_json(json.loads(json.dumps(given.to_json())))
    assert again == given
    assert again.arrays()[0].tolist() == labels.tolist()
    assert again.arrays()[1].tolist() == predicted.tolist()
    assert len(given.labels) == 50 * {4: 1, 256: 1, 257: 2, 70_000: 4}[classes]
    assert given.hits().array().tolist() == (labels == predicted).astype(float).tolist()
    broken = given.to_json() | {"n": 49}
    with pytest.raises(ValueError, match="no classes of 49 images"):
        Answers.from_json(broken)


def test_several_runs_share_a_page(several: Path) -> None:
    found = read(several)
    text = " ".join(found.texts)
    assert "Accuracies compare only within a group" in text
    assert "sweep, macs=0.01 failed: TargetError: cannot <i>be</i> reached" in text
    assert "sweep is not finished, macs=0.1 still to come; the same command goes on: vitprune sweep timm:vit" in text
    first = found.tables["Top-1 is of 60 images, group 1"]
    assert [line[0] for line in first[1:]][-3:] == ["sweep macs=0.75", "sweep macs=0.5", "sweep macs=0.25"]
    assert [line[0] for line in found.tables["Top-1 is of 80 images, group 2"][1:]] == ["dense", "other"]
    fronts = rows_of(several.with_name("page_files") / "fronts.csv")
    best = {r["model"]: r["front_macs"] for r in fronts}
    tops = {r["model"]: (float(r["macs_share"]), float(r["top1"])) for r in fronts}
    dense = (1.0, 2.0)  # of the seeds here every dense model is as good as the pruned ones or better
    for name, (cost, top1) in tops.items():
        beaten = any(c <= cost and t >= top1 and (c, t) != (cost, top1) for c, t in tops.values())
        assert best[name] == str(int(not beaten)), (name, dense)


def test_the_smallest_that_loses_a_point_at_most_is_the_headline(tmp_path: Path) -> None:
    labels = np.arange(200) % 4

    def wrong(n: int) -> Answers:
        return Answers.of("same", labels, np.where(np.arange(200) < n, (labels + 1) % 4, labels))

    for share, mistakes in ((0.75, 10), (0.5, 12), (0.25, 13)):  # dense: 10
        write_model(tmp_path / f"m{share}", share=share, given=(wrong(10), wrong(mistakes)))
    folders = [tmp_path / f"m{share}" for share in (0.75, 0.5, 0.25)]
    page, _ = page_of(read_runs(folders), data=None, images=False, command="")
    assert page.headline == "Half of the MACs, 1 point lost"  # a quarter loses 1.5
    rule = "the smallest that loses a point of top-1 at most, chosen by these images: m0.5."
    assert f"Of 3 models on this page it is {rule}" in page.lead
    write_model(tmp_path / "poor", share=0.25, given=(wrong(10), wrong(20)))
    page, _ = page_of(read_runs([tmp_path / "poor"]), data=None, images=False, command="")
    assert page.headline == "A quarter of the MACs, 5 points lost"


def test_what_an_older_run_did_not_keep_is_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "old", keep_answers=False, epochs=0, command="", run=None)
    done = run_report([folder], tmp_path / "page.html")
    why = dict(done.missing)
    assert "did not keep what it predicted" in why["Which classes lost, and confusions"]
    assert "did not keep what it predicted" in why[PICTURES]
    assert "--epochs 0" in why["Learning curves"]
    text = " ".join(read(tmp_path / "page.html").texts)
    assert "# not kept: made by an earlier version" in text
    assert "Difference from the dense model, image by image" not in text


def test_images_are_shown_or_their_absence_is_said(tmp_path: Path) -> None:
    (model,) = read_run(write_model(tmp_path / "run"), "run").models
    section, why = images_section(model, None)
    assert section is None and "are not those of the run; give its DATA" in why
    section, why = images_section(model, str(tmp_path / "nowhere"))
    assert section is None and "there is no folder" in why
    (same,) = read_run(write_model(tmp_path / "same", given=(answers(1)[0],) * 2), "same").models
    assert "gives every test image the class" in images_section(same, None)[1]
    why = dict(page_of([read_run(tmp_path / "run", "run")], data=None, images=False, command="")[1])[PICTURES]
    assert why == "left out by --no-images"


def test_the_right_images_are_shown(tmp_path: Path) -> None:
    from PIL import Image

    from vitprune.data import open_data
    from vitprune.preprocessing import Preprocessing

    split = open_data("fashion-mnist-sample", Preprocessing((8, 8), (0.5,), (0.5,), channels=1)).test
    assert split is not None
    labels = np.concatenate([b.numpy() for _, b in split])
    before, after = labels.copy(), labels.copy()
    after[[3, 700]] = (labels[[3, 700]] + 1) % 10
    before[11] = (labels[11] + 2) % 10
    names = tuple(f"class {i}" for i in range(10))
    given = tuple(Answers.of(split.identity(), labels, p) for p in (before, after))
    folder = write_model(tmp_path / "run", given=given, names=names)  # type: ignore[arg-type]
    assert "Images whose prediction changed" not in dict(run_report([folder], tmp_path / "page.html").missing)
    found = read(tmp_path / "page.html")
    alts = [
        f"Image of the class {names[labels[i]]}; dense: {names[before[i]]}, pruned: {names[after[i]]}"
        for i in (3, 700, 11)
    ]
    assert [image["alt"] for image in found.images] == alts
    whole = np.concatenate([x.numpy() for x, _ in split])
    for image, place in zip(found.images, (3, 700, 11), strict=True):
        raw = base64.b64decode(str(image["src"]).partition(",")[2])
        shown = np.asarray(Image.open(io.BytesIO(raw)), dtype=np.float64)
        assert np.abs(shown / 255 - (whole[place, 0] * 0.5 + 0.5)).max() < 1 / 255


def test_picked_images_are_those_of_the_pass(image_folder: Path) -> None:
    from vitprune.data import open_data
    from vitprune.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

    data = open_data(str(image_folder), Preprocessing((16, 16), IMAGENET_MEAN, IMAGENET_STD))
    whole = np.concatenate([x.numpy() for x, _ in data.val])
    assert np.array_equal(data.val.picked([4, 0, 17]).numpy(), whole[[4, 0, 17]])


def test_a_search_without_a_model_shows_its_probes(tmp_path: Path) -> None:
    folder = tmp_path / "_search"  # a name that legends would leave out
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"model": "m", "data": {"spec": "d"}, "groups": {}}))
    with pytest.raises(StoreError, match="has none yet; .* vitprune search ... --out"):
        read_runs([folder])
    quality = {"top1": 0.9, "divergence": 0.01, "right": "", "images": 50}
    probe = {"number": 1, "origin": "uniform", "purpose": "p", "shares": {}, "sizes": {"a": 1}, "costs": {"macs": 0.5}}
    probe |= {"quality": quality, "lost": {"points": 1.0, "error": 0.5}, "seconds": 1.0}
    lines = [json.dumps(probe | {"number": n, "costs": {"macs": n / 10}}) + "\n" for n in (3, 5)]
    (folder / "probes.jsonl").write_text("".join(lines) + '{"number": 9, "cut sh')
    before = (folder / "probes.jsonl").read_bytes()
    done = run_report([folder], tmp_path / "page.html")
    assert done.headline == "2 probes, no model yet"
    assert [r["macs_share"] for r in rows_of(tmp_path / "page_files" / "probes.csv")] == ["0.3", "0.5"]
    assert (folder / "probes.jsonl").read_bytes() == before  # a search may be writing it
    (folder / "probes.jsonl").write_text('{"number": 9}\n')
    with pytest.raises(StoreError, match="is damaged, or was edited"):
        read_runs([folder])


def test_names_that_cannot_be_shown(tmp_path: Path) -> None:
    """Control characters and undecodable bytes, in names of classes, folders and commands, end up replaced."""
    names = ("a\x00b", "c\x1b[31m", "d", "e\x0b")
    folder = write_model(tmp_path / "_\x07run", names=names, command="vitprune prune \udce9")
    run_report([folder], tmp_path / "page.html", images=False)
    text = " ".join(read(tmp_path / "page.html").texts)
    assert "a\N{REPLACEMENT CHARACTER}b" in text
    assert "_\N{REPLACEMENT CHARACTER}run" in text
    assert not set("\x00\x07\x0b\x1b") & set((tmp_path / "page.html").read_text("utf-8"))


def test_labels_tell_folders_apart() -> None:
    assert labels_of([Path("/a/x"), Path("/b/y")]) == ["x", "y"]
    assert labels_of([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]


def test_pictures_are_the_same_every_time(one: tuple[Path, Path], tmp_path: Path) -> None:
    page, folder = one
    run_report([folder], tmp_path / "page.html")
    for path in page.with_name("page_files").iterdir():
        assert (tmp_path / "page_files" / path.name).read_bytes() == path.read_bytes(), path.name
    wild = re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page.read_text("utf-8"))
    assert re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", (tmp_path / "page.html").read_text("utf-8")) == wild
