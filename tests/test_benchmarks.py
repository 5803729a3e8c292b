"""The parts of the benchmarks that compute: stored cells, and how the peer is wired."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import domains
import fine_tuned
import headline
import one_shot_page
import peer
import trained_page
from cells import Cells, wanted

from vitprune.report import DomainCell, DomainScores, DomainStudy, domains_json


def test_cells_are_found_again_replaced_and_kept_apart(tmp_path):
    path = tmp_path / "some" / "cells.jsonl"
    cells = Cells(path)
    cells.put({"score": "energy", "target": 0.5}, {"top1": 0.9})
    cells.put({"score": "fisher", "target": 0.5}, {"top1": 0.8})
    again = Cells(path)
    assert again.get({"target": 0.5, "score": "energy"}) == {"top1": 0.9}
    assert again.get({"target": 0.6, "score": "energy"}) is None
    again.put({"score": "energy", "target": 0.5}, {"top1": 0.7})
    assert [row["top1"] for row in Cells(path)] == [0.7, 0.8]
    assert len(path.read_text().splitlines()) == 2


def test_a_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "cells.jsonl"
    Cells(path).put({"seed": 0}, {"top1": 0.5})
    path.write_text(path.read_text() + '{"settings": {"seed": 1}, "val')
    cells = Cells(path)
    assert len(cells) == 1
    cells.put({"seed": 1}, {"top1": 0.6})
    assert len(Cells(path)) == 2


def test_fresh_cells_are_measured_again_but_not_lost(tmp_path):
    path = tmp_path / "cells.jsonl"
    Cells(path).put({"seed": 0}, {"top1": 0.5})
    cells = Cells(path, fresh=True)
    assert {"seed": 0} not in cells and cells.get({"seed": 0}) is None
    assert len(Cells(path)) == 1
    cells.put({"seed": 0}, {"top1": 0.4})
    assert cells.get({"seed": 0}) == {"top1": 0.4}
    assert [row["top1"] for row in Cells(path)] == [0.4]


def test_filters_name_settings():
    settings = {"tool": "vitprune", "target": 0.5}
    assert wanted(["tool=vitprune,other", "target=0.5"], settings)
    assert not wanted(["tool=other"], settings)
    with pytest.raises(ValueError, match="a name of tool, target, but got 'colour=red'"):
        wanted(["colour=red"], settings)


def row(score, seed, top1, **more):
    common = {"tool": "vitprune", "scope": "local", "structure": "mlp", "target": 0.5, "macs": 0.499, "labels": False}
    return {**common, "score": score, "seed": seed, "recipe": "rotate+refit", "top1": top1, **more}


def test_page_takes_means_over_seeds_and_the_best_line():
    rows = [row("energy", 0, 0.90), row("energy", 1, 0.92), row("fisher", 0, 0.93, labels=True), row("random", 0, 0.99)]
    series = one_shot_page.groups(rows)
    line, top1 = one_shot_page.best(series["vitprune, no labels, rotated and refitted"], 0.5)
    assert line == ("energy", "local", "mlp") and top1 == pytest.approx(0.91)
    assert one_shot_page.shown(rows[:2]) == "91.00 ± 1.41"
    assert one_shot_page.shown([row("energy", 0, 0.9, macs=0.48)]) == "90.00 (0.480)"
    some = one_shot_page.by_line([*rows, row("energy", 0, 0.8, target=0.4)])
    assert one_shot_page.covered(some) == [0.5]
    refused = row("energy", 0, 0)
    del refused["top1"]
    assert one_shot_page.shown([refused]) == "refused"
    text = one_shot_page.verdicts(series, dense=0.915)
    assert "energy local, rotated and refitted, loses 0.50 | yes" in text


def test_long_budgets_count_at_the_rate_of_the_short_one_only():
    """A grid that was widened afterwards leaves long runs at two rates: the better of them is no fair choice."""

    def trained(score, epochs, lr, val):
        return row(score, 0, val, epochs=epochs, lr=lr, val_top1=val)

    rows = [trained("energy", 1, 3e-4, 0.90), trained("energy", 3, 3e-4, 0.95), trained("energy", 1, 1e-4, 0.91)]
    rows += [trained("energy", 3, 1e-4, 0.92), trained("energy", 1, 1e-2, 0.99), trained("fisher", 1, 1e-3, 0.5)]

    def chosen(rates):
        found = fine_tuned.at_chosen_rates(rows, 1, rates)
        return sorted((r["score"], r["epochs"], r["lr"]) for r in found)

    assert chosen([1e-4, 3e-4]) == [("energy", 1, 1e-4), ("energy", 3, 1e-4)]
    assert chosen([3e-4, 1e-3]) == [("energy", 1, 3e-4), ("energy", 3, 3e-4), ("fisher", 1, 1e-3)]


def test_headline_shows_the_default_beside_the_best_of_the_peer():
    panel = headline.Panel("small", "a model", {"images": 4, "test_images": None})

    def stored(tool, score, top1, **more):
        line = {"scope": "per-cost" if score == "output-error" else "local", "recipe": "rotate+refit", **more}
        return row(score, 0, top1, tool=tool, **({"images": 4, "test_images": None} | line))

    cut = {"recipe": "cut"}
    rows = [stored("dense", "", 0.95), stored("vitprune", "output-error", 0.90), stored("vitprune", "energy", 0.99)]
    rows += [stored("vitprune", "output-error", 0.80, target=0.25), stored("vitprune", "output-error", 1.0, images=8)]
    rows += [stored("torch-pruning", "taylor", 0.5, **cut), stored("torch-pruning", "lamp", 0.6, **cut)]
    tuned = [
        stored("vitprune", "output-error", top1, epochs=epochs, lr=lr, val_top1=val)
        for epochs, lr, val, top1 in (
            (1, 1e-4, 0.91, 0.5),
            (1, 1e-3, 0.92, 0.5),
            (10, 1e-4, 0.99, 0.99),
            (10, 1e-3, 0.9, 0.93),
        )
    ]
    found = headline.curves(rows, tuned, panel)
    assert found.dense == 0.95
    assert found.cut[headline.OURS] == [(0.25, 0.80), (0.5, 0.90)]
    assert found.cut[headline.THEIRS] == [(0.5, 0.6)]
    assert found.trained == {headline.OURS: [(0.5, 0.93)], headline.THEIRS: []}


@pytest.mark.parametrize("heights", [[], [50.0], [10.0, 50.0], [91.3, 91.8, 92.4], [80.0, 84.0, 88.0, 89.0, 10.0]])
def test_values_written_beside_each_other_do_not_touch(heights):
    heights = sorted(heights)
    placed = headline._apart(heights, 5)
    gaps = [b - a for a, b in pairwise(placed)]
    assert len(placed) == len(heights) and all(gap >= 5 - 1e-9 for gap in gaps)
    assert sum(placed) == pytest.approx(sum(heights))


def dinov2():
    from transformers import Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=14, num_labels=5
    )
    return Dinov2ForImageClassification(config).eval(), torch.randn(4, 3, 28, 28)


def test_the_split_head_gives_the_classifiers_scores():
    model, x = dinov2()
    with torch.no_grad():
        assert torch.allclose(peer.prepared(model)(x), model(x).logits, atol=1e-6)


def test_gradients_for_hessian_are_mean_squares_over_all_images():
    model, x = dinov2()
    model, labels = peer.prepared(model), torch.tensor([0, 1, 2, 3])
    names = [name for name, _ in model.named_parameters()]
    found, last = (
        dict(zip(names, peer.gradients(model, "hessian", [(x, labels)], repaired=repaired), strict=True))
        for repaired in (True, False)
    )
    squares = []
    for image, label in zip(x, labels, strict=True):
        scores = model(image[None]).softmax(1)[0]
        scores[label] -= 1
        squares.append(scores.square())  # the gradient of cross-entropy by the bias is softmax - one-hot
    assert torch.allclose(found["of_token.bias"], torch.stack(squares).mean(0), atol=1e-6)
    assert torch.allclose(last["of_token.bias"], squares[-1], atol=1e-6)


@pytest.mark.parametrize("structure", peer.STRUCTURES)
@pytest.mark.parametrize("scope", ["local", "isomorphic"])  # "global" empties a layer of one so small
def test_the_peer_hits_the_macs_and_runs(scope, structure):
    pytest.importorskip("torch_pruning", reason="the peer of the benchmarks is not installed")
    model, x = dinov2()
    model = peer.prepared(model)
    found = peer.gradients(model, "taylor", [(x, torch.tensor([0, 1, 2, 3]))])
    cut = peer.prune(model, x, found, "taylor", scope, structure, 0.6)
    assert cut.macs == peer.macs(cut.model, x) / peer.macs(model, x)
    assert 0.5 < cut.macs <= 0.606  # widths of 24 are coarse steps
    assert cut.model(x).shape == (4, 5)
    width = cut.model.dinov2.encoder.layer[0].mlp.fc2.out_features
    assert (width == 24) == (structure == "inner")


def test_pages_of_trained_models_give_means_and_verdicts(tmp_path):
    """Points lost against anchor and aim, what masks leave behind, and a picture with every way that was measured."""

    def cell(way, target, seed, top1, **more):
        shares = {"macs": 0.3, "params_share": 0.3}
        return {"way": way, "target": target, "seed": seed, "top1": top1, **shares, **more}

    rows = [
        cell("masks residual", "params=0.3", seed, top1, behind=0, before=0.5, units=units, weights="refitted")
        for seed, top1, units in ((0, 0.91, "scores"), (1, 0.93, "masks"))
    ]
    rows += [cell("masks independent", "params=0.3", 0, 0.85, behind=100), cell("vtp", "rate=0.4", 0, 0.9175, behind=0)]
    rows.append(cell("small from scratch", "params=0.3", 0, 0.70, width=48, time=1.02))
    text = "\n".join(trained_page.page(rows, 0.93, 1000, "picture.png"))
    assert "| params=0.3 | masks residual | 1.00 | 1 | 0.3 | anchor | 2 |" in text
    assert "| params=0.3 | masks independent | 8.00 | 1 | 0.3 | no | 1 |" in text
    assert "| rate=0.4 | vtp | 1.25 | 1.1 | 0.3 | no | 1 |" in text
    assert (
        "| params=0.3 | masks residual | 50.00 ± 0.00 | 92.00 ± 1.41 | 1.00 ± 1.41 | 30.0 ± 0.0 | 30.0 ± 0.0 | 2 |"
        in text
    )
    assert "| 30.0 ± 0.0 | 30.0 ± 0.0 | 92.00 ± 1.41 | masks, refitted: 1; scores: 1 |" in text
    assert "| params=0.3 | masks independent | 20.0 | 30.0 | 85.00 | - |" in text
    assert "48 at params=0.3 (seed 0, 1.02 of the time)" in text
    trained_page.draw(rows, 0.93, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_page_of_domains_takes_the_rows_of_the_last_one_and_keeps_the_others(tmp_path):
    def cell(key, top1=None, seed=0):
        found = None if top1 is None else DomainScores({"b": 0.5}, {"a": top1})
        return DomainCell("vit", "a", seed, "dense", "", "", 0.0, key, found=found)

    def page(day, *cells):
        rows = domains_json(DomainStudy("", ("a",), cells))["cells"]
        (tmp_path / f"2026-01-{day}-domains-all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    assert domains.stored_cells(tmp_path, "all") == {}
    page("01", cell("here", 0.1), cell("old", 0.1))
    page("02", cell("here", 0.2), cell("there", 0.3, seed=1), cell("other", 0.4), cell("open"))
    stored = domains.stored_cells(tmp_path, "all")
    assert sorted(stored) == ["here", "other", "there"] and domains.stored_cells(tmp_path, "al") == {}
    asked = DomainStudy("", ("a",), (cell("here", 0.9), cell("there", seed=1), cell("open"), cell("new")))
    shown, kept = domains.joined(asked, stored)
    assert [None if c.found is None else c.found.outside["a"] for c in shown.cells] == [0.9, 0.3, None, None]
    assert shown.cells[1].seed == 1 and kept.cells == (*shown.cells, cell("other", 0.4))
