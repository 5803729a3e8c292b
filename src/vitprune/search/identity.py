"""What makes a study: two workers may only share one when their probes are the same thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitprune.differences import differing
from vitprune.errors import listed
from vitprune.search.errors import SearchError
from vitprune.search.goal import Goal
from vitprune.search.prober import Prober


def identity_of(prober: Prober, goal: Goal, method: str, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study as JSON values. more: what only the caller knows: model, weights, data, calibration, ..."""
    judged = np.ascontiguousarray(prober.judge.labels.numpy())
    settings = {
        **more,
        "method": method,
        "seed": seed,
        "goal": {"cost": goal.cost, "max_drop": goal.max_drop, "budget": goal.budget, "confident": goal.confident},
        "graph": prober.graph.fingerprint,
        "axes": {axis.name: [list(axis.groups), axis.least] for axis in prober.space.axes},
        "labels": hashlib.sha256(judged.tobytes()).hexdigest()[:16],
        "scope": prober.scope,
        "rules": prober.rules,
        "refits": prober.refits,
        "tuned": prober.tune is not None,
    }
    return dict(json.loads(json.dumps(settings)))


def check_same(found: Any, wanted: Mapping[str, Any], name: str, place: str) -> None:
    """Pass when the study `name` in the storage `place` was made with these settings. Raises SearchError otherwise."""
    if not isinstance(found, dict):
        raise SearchError(
            f"the study {name!r} in {place} was not made by a search of vitprune; choose another name (--study) or "
            "another --storage"
        )
    others = differing(found, wanted)
    if others:
        told = listed([f"{key}: {_at(found, key)} there, {_at(wanted, key)} here" for key in others])
        raise SearchError(
            f"the study {name!r} in {place} was made with other settings ({told}); join it with the same model, "
            "data and settings, choose another name (--study) or --storage, or replace it with --force"
        )


def _at(settings: Any, key: str) -> str:
    """The value of "group.name", cut short; names may have dots in them."""
    if isinstance(settings, Mapping):
        if key in settings:
            text = json.dumps(settings[key])
            return text if len(text) <= 40 else text[:37] + "..."
        for name, inner in settings.items():
            if key.startswith(f"{name}.") and isinstance(inner, Mapping):
                return _at(inner, key[len(name) + 1 :])
    return "nothing"
