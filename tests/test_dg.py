"""Studies of domains: what their cells see, that they resume, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY
from dg_parts import SHORT, settings
from test_domains import write_domains
from toys import toy_graph
from vitprune import dg as public
from vitprune.allocate import allocate
from vitprune.data.images import Files
from vitprune.errors import TargetError
from vitprune.pipeline import dg_run, measure, prune_stages
from vitprune.pipeline.cells import ComparisonError
from vitprune.pipeline.dg_cells import cells_of, labels
from vitprune.pipeline.dg_run import run_dg
from vitprune.pipeline.dg_settings import FORMS, StudyError, StudySettings
from vitprune.pipeline.setup import DomainSettings
from vitprune.score.over_domains import check_way, combined, parts_of
from vitprune.score.types import ScoreError

MODEL = TINY.replace("&num_classes=3", "")


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    return write_domains(tmp_path / "domains")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.01)


# cells


def test_cells_are_named_by_what_decides_them() -> None:
    how = settings(ratios=(0.5, 0.75), scores=("hessian", "random"), forms=tuple(FORMS), over=("pooled", "worst"),
                   tuning=replace(SHORT, epochs=2))  # fmt: skip
    dense, pruned = cells_of(["m"], [("a",), ("b",)], how, {"data": "x"})
    assert len(dense) == 2
    scored = 3 * (2 + 1)  # three forms: hessian pooled and worst, random pooled
    assert len(pruned) == 2 * 2 * (scored + 2 + 2 + 1)  # default and blended, each pooled and worst, masks
    assert len({c.key for c in (*dense, *pruned)}) == 2 + len(pruned)
    fewer = settings(ratios=(0.75,), scores=("hessian",), tuning=replace(SHORT, epochs=2))
    more = cells_of(["m", "n"], [("a",)], fewer, {"data": "x"})
    assert more[0][0].key == dense[0].key  # more models and fewer ratios change nothing for the others
    hessian = next(c for c in pruned if (c.form, c.score, c.over) == ("grouped-global", "hessian", "pooled"))
    assert hessian.settings is not None
    assert (hessian.settings.method, hessian.settings.scope) == ("hessian", "global")
    assert set(hessian.settings.kinds or ()) == {"residual", "heads", "qk", "v", "mlp"}
    assert not hessian.settings.refit and not hessian.settings.rotate
    shares = {c.form: c.settings.blend for c in pruned if c.settings is not None}
    assert shares.pop("blended") == 0.25 and set(shares.values()) == {0.0}
    masks = next(c for c in pruned if c.form == "masks")
    assert masks.settings is not None and masks.training is not None
    assert masks.settings.learned.search.epochs + masks.training.epochs == 2


def test_short_names() -> None:
    assert labels(["timm:deit?a=b/c", "hf:/x/deit/", "runs/beit"]) == ["deit (1)", "deit (2)", "beit"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratios": (1.0,)}, "ratios are shares that are removed, above 0 and below 1, but got 1"),
        ({"ratios": ()}, "needs ratios, at least one"),
        ({"seeds": (0, 0)}, "seeds of a study must differ, but 0 stands there 2 times"),
        ({"seeds": (-1,)}, "seeds must be whole numbers"),
        ({"forms": ("global",)}, "forms must be of grouped-global, .*, but got 'global'"),
        ({"over": ("best",)}, "over must be of pooled, mean, worst, shared, steady, but got 'best'"),
        ({"ratio_of": "flops"}, "ratio-of must be one of params, macs, units, but got 'flops'"),
        ({"forms": ("masks",), "ratio_of": "units"}, "masks are trained towards a cost"),
        ({"tuning": None, "rates": (0.1,)}, "need epochs of fine-tuning, but got none"),
        ({"calibration": 0}, "need calibration images, but got 0"),
        ({"rates": (-0.1,)}, "learning rates must be above 0, but got -0.1"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        settings(**wrong)


def test_words_that_are_unknown_to_others() -> None:
    with pytest.raises(StudyError, match="scores must be of .*hessian, .*, but got 'hesian'; did you mean 'hessian'"):
        settings(scores=("hesian",))
    with pytest.raises(ScoreError, match="'random' sees no images, so its scores are the same for all domains"):
        settings(scores=("hessian", "random"), over=("worst",))
    with pytest.raises(ComparisonError, match="leave 0 for fine-tuning"):
        cells_of(["m"], [("a",)], settings(forms=("masks",)), {})
    with pytest.raises(StudyError, match="models of a study must differ, but m stands there 2 times"):
        cells_of(["m", "m"], [("a",)], StudySettings(), {})


# scores over domains


def test_scores_over_domains_by_hand() -> None:
    one = {"a": np.array([[1.0, 3.0]]), "b": np.array([[2.0, 2.0]]), "other": np.array([[99.0]])}
    two = {"a": np.array([[30.0, 10.0]]), "b": np.array([[0.0, 40.0]]), "other": np.array([[-7.0]])}
    even = np.array([[[0.5, 1.5], [1.0, 1.0]], [[1.5, 0.5], [0.0, 2.0]]])  # by their means 2 and 20
    want = {"mean": even.mean(0), "worst": even.max(0), "shared": even.min(0), "steady": even.mean(0) - even.std(0)}
    for way, values in want.items():
        found = combined([one, two], way, ["a", "b"])
        assert np.allclose([found["a"][0], found["b"][0]], values)
    with pytest.raises(ScoreError, match="must be one of pooled, mean, worst, shared, steady, but got 'best'"):
        check_way("best", "taylor")
    with pytest.raises(ScoreError, match="'magnitude-l2' sees no images, so its scores are the same for all domains"):
        check_way("worst", "magnitude-l2")
    with pytest.raises(ScoreError, match="need the calibration images of two domains or more, but got 0"):
        parts_of([torch.zeros(1)])


# a share of the units


def test_a_share_of_the_units_is_met_from_below() -> None:
    graph = toy_graph()
    rng = np.random.default_rng(0)
    scores = {g.name: rng.random((g.lanes, g.size)) for g in graph.groups}
    kinds = ("mlp", "residual")
    counted = [g for g in graph.groups if g.kind in kinds]
    dense = sum(g.size * g.lanes for g in counted)
    for share in (0.75, 0.5, 0.3):
        plan = allocate(graph, scores, f"units={share}", scope="global", kinds=kinds, round_to=1)
        sizes = plan.sizes()
        left = sum(sizes[g.name] * g.lanes for g in counted)
        got = plan.obtained["units"]
        assert (got["value"], got["dense"]) == (left, dense) and left <= share * dense < left + 2
        kept = [scores[g.name][0, list(plan.groups[g.name].kept[0])].min() for g in counted]
        gone = [np.delete(scores[g.name][0], list(plan.groups[g.name].kept[0])) for g in counted]
        assert min(kept) > max(v.max() for v in gone if len(v))  # one threshold over all groups
    with pytest.raises(TargetError, match="units are asked for as a share"):
        allocate(graph, scores, "units=5k")


# whole studies


def test_a_study_and_what_it_leaves(command, domains: Path) -> None:
    arguments = ["dg", "--models", MODEL, "--data", domains, "--held-out", "art,photo+sketch", "--seeds", "0"]
    arguments += ["--scores", "hessian", "--ratios", "0.3", "--from-scratch", "--dense-epochs", 1, "--epochs", 1]
    arguments += ["--batch-size", 6, "--calibration", 6, "--no-control", "--out", "study", "-q"]
    first = command(*arguments, "--json")
    assert first.code == 0, first.err
    cells = first.json["cells"]
    assert len(cells) == 2 * 2 and {c["status"] for c in cells} == {"done"}
    for cell in cells:
        held, source = (["art"], ["photo", "sketch"]) if cell["held"] == "art" else (["photo", "sketch"], ["art"])
        assert sorted(cell["outside"]) == sorted(cell["oracle"]) == held and sorted(cell["inside"]) == source
        if cell["form"] != "dense":
            assert cell["shares"]["params"] <= 0.7 and set(cell["speed"]) == {"1", "32"} and cell["epoch_s"] > 0
    lines = {(line["line"], line["ratio"]) for line in first.json["lines"]}
    assert lines == {("dense", 0.0), ("grouped-global hessian", 0.3)}
    study = Path("study")
    stamps = {p: p.stat().st_mtime_ns for p in study.glob("runs/*/model/model.safetensors")}
    again = command(*arguments, "--method", "default")
    assert again.code == 0, again.err
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items()), "finished cells are not done again"
    assert len(list(study.glob("runs/*"))) == 2 * 3
    assert "photo" in again.out and "in-domain" in again.out and "Chosen among all" in again.out
    page = (study / "table.md").read_text()
    assert "drop outside" in page and "speed-up, batch 32" in page and "by oracle" in page
    assert [len(list(study.glob(f"{stem}-*.png"))) for stem in ("curves", "drops")] == [1, 1]
    assert all(p.name in page and p.read_bytes()[:4] == b"\x89PNG" for p in study.glob("*.png"))
    rows = (study / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * (2 + 2 * 1 + 1 + 2 * 2)  # per cell: sources, and twice the held-out domains
    other = command(*arguments, "--limit", 10)
    assert other.code == 6 and "holds a study of domains of something else (data.limit)" in other.err


def test_held_out_images_are_read_when_the_model_is_saved(domains: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(dg_run, "check_readable", lambda *_: None)
    early, late, opened = list[str](), list[str](), Files.open

    def watched(self: Files, index: int) -> object:
        path = Path(self.paths[index])
        saved = any((run / "model" / "plan.json").is_file() and not (run / "done.json").is_file()
                    for run in (tmp_path / "study/runs").glob("*"))  # fmt: skip
        (late if saved else early).append(path.parent.parent.name)
        return opened(self, index)

    monkeypatch.setattr(Files, "open", watched)
    how = settings(forms=("refit",), scores=("taylor",), over=("worst",))
    found = run_dg([MODEL], DomainSettings(str(domains)), how, tmp_path / "study", held_out="sketch", device="cpu")
    assert not found.failed and len(found.finished) == 2
    assert set(early) == {"art", "photo"} and "sketch" in late


def test_masks_and_units_and_rates(domains: Path, tmp_path: Path, monkeypatch) -> None:
    how = settings(forms=("masks",), tuning=replace(SHORT, epochs=2), rates=(1e-4,), control=True)
    found = public([MODEL], str(domains), tmp_path / "masks", settings=how, held_out=[("art",)], device="cpu")
    assert [c.status for c in found.cells] == ["done"] * 3
    (dense, control, line) = found.lines()
    assert (dense.line, control.line, control.shares["params"]) == ("dense", "dense, trained on", 1.0)
    assert (
        control.drop_outside is not None
        and dense.drop_outside is None
        and line.line == "masks"
        and line.shares["params"] <= 0.7
    )
    assert found.finished[-1].lr == 1e-4
    metrics = json.loads((tmp_path / "masks/runs" / found.finished[-1].key / "model/metrics.json").read_text())
    epochs = [*metrics["history"]["epochs"], *metrics["search"]["search"]["epochs"]]
    assert len(epochs) == 2 and found.finished[-1].train_s == pytest.approx(sum(e["seconds"] for e in epochs))
    made, once = [], prune_stages.ranked
    monkeypatch.setattr(prune_stages, "ranked", lambda *given: made.append(1) or once(*given))
    forms = ("grouped-global", "isomorphic")
    how = settings(ratio_of="units", ratios=(0.5, 0.2), forms=forms, round_to=1, tuning=None)
    found = run_dg([MODEL], DomainSettings(str(domains)), how, tmp_path / "units", held_out="art", device="cpu")
    cell = found.finished[1]
    assert len(found.finished) == 1 + 2 * 2 and len(made) == 1, "ratios and forms have the scores in common"
    plan = json.loads((tmp_path / "units/runs" / cell.key / "model/plan.json").read_text())
    assert 0.45 < plan["obtained"]["units"]["ratio"] <= 0.5 and cell.epoch_s is None


def test_what_no_cell_could_do_is_said_before_anything_is_trained(command, domains: Path, tmp_path: Path) -> None:
    asked = ["dg", "--models", MODEL, "--from-scratch", "--scores", "taylor", "--ratios", "0.3", "--seeds", "0,1", "-q"]
    done = command(*asked, "--data", domains, "--batch-size", 1, "--out", "study")
    assert done.code == 4 and "each of 2 source domains of" in done.err and "at least that, but got 1" in done.err
    few = write_domains(tmp_path / "few", count=1)
    done = command(*asked, "--data", few, "--batch-size", 6, "--out", "study")
    assert done.code == 4 and "to train on and 0 to validate with; both need some" in done.err
    assert not Path("study").exists()


def test_cells_whose_dense_model_failed_wait(domains: Path, tmp_path: Path, monkeypatch) -> None:
    from vitprune.pipeline import dg_cell

    def broken(*_: object, **__: object) -> Iterator[None]:
        raise ValueError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(dg_cell, "run_train", broken)
        found = run_dg([MODEL], DomainSettings(str(domains)), settings(), tmp_path / "s", held_out="art", device="cpu")
    assert [(c.form, c.status) for c in found.cells] == [("dense", "failed"), ("grouped-global", "open")]
    assert "no luck" in found.failed[0].error and "no luck" in (tmp_path / "s/table.md").read_text()
    found = run_dg([MODEL], DomainSettings(str(domains)), settings(), tmp_path / "s", held_out="art", device="cpu")
    assert [c.status for c in found.cells] == ["done", "done"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--held-out", "cartoon"), 4, "--held-out must be domains of"),
        (("--augment", "all"), 4, "--augment must be one of auto, domainbed, none"),
        (("--ratios", "half"), 5, "--ratios must be numbers"),
        (("--seeds", "1.5"), 5, "--seeds must be whole numbers"),
        (("--method", "maks"), 2, "forms must be of"),
        (("--scores", "hesian"), 2, "did you mean"),
    ],
)
def test_bad_input_ends_before_a_cell(
    command, domains: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    run = command("dg", "--models", MODEL, "--data", domains, "--from-scratch", "--out", "study", "-q", *arguments)
    assert (run.code, run.err.count("\n")) == (code, 1) and message in run.err
    assert not Path("study").exists()


def test_one_domain_alone_is_an_error(command, domains: Path) -> None:
    run = command("dg", "--models", MODEL, "--data", domains / "art", "-q")
    assert run.code == 4 and "cat, dog hold no class folders; if these are the classes of one domain" in run.err


@pytest.mark.parametrize(
    ("command_line", "code", "message"),
    [
        (("search", "--target", "units=0.5"), 11, "a search has a target of macs, params, latency, but got units=0.5"),
        (("prune", "--method", "masks", "--target", "units=0.5"), 9, "must be one of macs, params, latency"),
    ],
)
def test_units_are_no_cost(command, domains: Path, command_line: tuple[str, ...], code: int, message: str) -> None:
    name, *rest = command_line
    run = command(name, MODEL + "&num_classes=2", "--data", domains / "art", *rest, "--calibration", 4, "-q")
    assert run.code == code and message in run.err
