"""Folders of finished runs for tests of reports, made without training: small files by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitprune import store
from vitprune.plan import GroupPlan, Plan
from vitprune.preprocessing import Preprocessing
from vitprune.report import Answers, Row
from vitprune.report.paired import Hits

HOSTILE = ("<script>alert(1)</script>", "a & b \"quoted\" 'single'", "$x_1$ {{ 7*7 }} </svg> $\\frac$", "Ünï 中文")
PREPROCESSING = Preprocessing((8, 8), (0.5,), (0.5,), channels=1)


def answers(
    seed: int, n: int = 60, classes: int = 4, wrong: float = 0.2, images: str = "same"
) -> tuple[Answers, Answers]:
    """What a dense and a pruned model answered, right but for a share of the images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    both = []
    for share in (wrong / 2, wrong):
        shift = (rng.random(n) < share) * rng.integers(1, classes, n)
        both.append(Answers.of(images, labels, (labels + shift) % classes))
    return both[0], both[1]


def top1_of(given: Answers) -> float:
    labels, predicted = given.arrays()
    return float((labels == predicted).mean())


def write_model(
    folder: Path,
    *,
    share: float = 0.5,
    seed: int = 0,
    names: Sequence[str] = HOSTILE,
    keep_answers: bool = True,
    epochs: int = 2,
    asked: dict[str, float] | None = None,
    given: tuple[Answers, Answers] | None = None,
    latency: bool = True,
    **metrics: Any,
) -> Path:
    """A saved folder as `run_prune` leaves it; the model in it is a single layer."""
    dense, last = given or answers(seed)
    kept = tuple(range(int(64 * share)))
    groups = {
        "blocks.0.mlp:mlp": GroupPlan("mlp", 64, 1, (kept,)),
        "blocks.1.mlp:mlp": GroupPlan("mlp", 64, 1, (kept,)),
        "blocks.0.attn:heads": GroupPlan("heads", 4, 1, (tuple(range(4)),)),
    }
    obtained = {"macs": {"value": int(10000 * share), "dense": 10000, "ratio": share}}
    obtained["params"] = {"value": int(800 * share), "dense": 800, "ratio": share}
    plan = Plan(
        groups, asked=asked or {"macs": share}, obtained=obtained, method="output-error",
        settings={"scope": "local", "seed": seed, "notes": ["rounded <b>up</b>"]},
        source={"kind": "timm", "name": "vit_tiny_patch16_224", "options": {}}, versions={"torch": "2.15.0"},
    )  # fmt: skip
    times = (
        ({"latency_ms": 2.0, "latency32_ms": 30.0}, {"latency_ms": 1.5, "latency32_ms": 18.0}) if latency else ({}, {})
    )
    small = (int(800 * share), int(10000 * share))
    sizes = {"bytes": 1600, "memory_mib": 1.5}
    rows = [
        Row("dense", 800, 10000, top1_of(dense), (0.8, 0.95), dense.n, bytes=3200, memory_mib=2.5, **times[0]),
        Row("pruned", *small, 0.4, (0.3, 0.5), dense.n, **sizes, **times[1]),
        Row("fine-tuned", *small, top1_of(last), (0.7, 0.9), dense.n, **sizes, **times[1]),
    ]
    history = {
        "epochs": [
            {"epoch": i, "loss": 1.0 / (i + 1), "lr": 1e-4, "val_top1": 0.8 + 0.01 * i, "seconds": 1.0}
            for i in range(epochs)
        ],
        "start_val_top1": 0.75,
    }
    found: dict[str, Any] = {
        "rows": [r.to_json() for r in rows],
        "data": {"spec": "fashion-mnist-sample", "limit": None},
        "device": "cpu",
        "run": {"seed": seed, "model": "timm:vit", "prune": {}, "train": {"seed": seed}},
        "command": "vitprune prune timm:vit --data fashion-mnist-sample --out <here>",
    }
    if epochs:
        found |= {"training": {"epochs": epochs}, "history": history}
    if keep_answers:
        found |= {"answers": {"dense": dense.to_json(), "saved": last.to_json()}, "right": last.hits().to_json()}
    else:
        found["right"] = Hits(last.images, last.n, last.hits().right).to_json()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    return store.save(folder, model, plan, PREPROCESSING, classes=names, metrics=found | metrics)


def write_sweep(folder: Path, shares: Sequence[float] = (0.75, 0.5, 0.25), *, left: Sequence[str] = ()) -> Path:
    """A sweep's folder, with a failed point, and further ones that were asked for and are not there."""
    for share in shares:
        write_model(folder / "points" / f"macs-{share:g}", share=share, seed=round(100 * share))
    names = [*(f"macs={share:g}" for share in shares), "macs=0.01", *left]
    (folder / "points" / "macs-0.01.failed.json").write_text(
        json.dumps({"asked": "macs=0.01", "error": "TargetError: cannot <i>be</i> reached"})
    )
    settings = {"model": "timm:vit", "data": {"spec": "fashion-mnist-sample"}, "seed": 0}
    about = {"settings": settings, "points": names, "command": "vitprune sweep timm:vit --out s"}
    (folder / "sweep.json").write_text(json.dumps(about))
    return folder
