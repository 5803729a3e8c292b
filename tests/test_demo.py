"""`vitprune demo`, which the README opens with, as a new user runs it: with fewer epochs."""

import json

import vitprune


def test_demo_prunes_refits_tunes_saves_and_draws(command, tmp_path):
    done = command("demo", "--out", "small", "--epochs", "1", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    dense, pruned, refitted, tuned = (row["top1"] for row in found["rows"])
    assert [row["name"] for row in found["rows"]] == ["dense", "pruned", "refitted", "fine-tuned"]
    assert 0.2475 <= found["obtained"]["macs"]["ratio"] <= 0.25
    assert dense > 0.91
    assert pruned < refitted - 0.03  # the refit brings back most of what the cut took, without labels
    assert min(refitted, tuned) > dense - 0.025
    assert "loaded again from" in done.err
    plan = vitprune.Plan.from_json((tmp_path / "small" / "plan.json").read_text())
    assert sum(p.numel() for p in vitprune.load(tmp_path / "small").parameters()) == plan.obtained["params"]["value"]
    assert (tmp_path / "small-widths.png").stat().st_size > 10_000
