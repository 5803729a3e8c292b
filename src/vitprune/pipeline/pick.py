"""From a probe to a saved model: the point that a search found, or another one of its record."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitprune.files import read_object, write_text
from vitprune.pipeline.measure import row_from_json
from vitprune.pipeline.prune_run import PruneResult, run_prune
from vitprune.pipeline.prune_settings import PruneSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.plan import Plan
from vitprune.recover import TrainSettings
from vitprune.search import COSTS, Probe, SearchError
from vitprune.store.read import METRICS, PLAN

PROBE = "probe.json"  # beside a saved model: what it was chosen as
_FORM = "write METRIC<SHARE or drop<POINTS, such as macs<0.4, params<=0.5 or drop<1"


def exact_shares(whole: Mapping[str, int], probe: Probe) -> dict[str, float]:
    """Pattern of one group's name -> the share of it that the probe keeps; whole: sizes of the dense model's groups."""
    return {glob.escape(name): size / whole[name] for name, size in probe.sizes.items()}


def materialise(
    spec: str,
    data: DataSettings,
    settings: PruneSettings,
    training: TrainSettings | None,
    out: Path,
    *,
    about: Mapping[str, Any],
    **how: Any,
) -> PruneResult:
    """The model of a probe, made, checked, measured and saved as `run_prune` does; `about` lies beside, as probe.json.

    One that is there, made with the same training, is not made again. how: further arguments of `run_prune`. Raises as
    that.
    """
    known = None if how.get("force") else _there(out, training)
    if known is not None:
        return known
    result = run_prune(spec, data, settings, training, out, **how)
    write_text(out / PROBE, json.dumps(dict(about), indent=1))
    return result


def _there(folder: Path, training: TrainSettings | None) -> PruneResult | None:
    if not (folder / PROBE).is_file() or not (folder / PLAN).is_file():
        return None
    metrics = read_object(folder / METRICS, "make it again with --force")
    if metrics.get("training") != (None if training is None else training.to_json()):
        return None
    plan = Plan.from_json((folder / PLAN).read_text(encoding="utf-8"))
    return PruneResult(folder, plan, tuple(row_from_json(row) for row in metrics["rows"]), metrics.get("history"))


def picked(probes: Sequence[Probe], text: str) -> Probe:
    """The best probe under a condition: "macs<0.4" (the highest top-1 at that cost) or "drop<1" (the fewest MACs).

    Raises SearchError for another form, and when no probe meets it, with the nearest one.
    """
    match = re.fullmatch(r"\s*([a-z]+)\s*(<=?)\s*([0-9.]+(?:e-?[0-9]+)?)\s*", text)
    if match is None or match[1] not in (*COSTS, "drop"):
        raise SearchError(f"a point is picked by a metric and a bound; {_FORM}, but got {text!r}")
    metric, strict = match[1], match[2] == "<"
    try:
        bound = float(match[3])
    except ValueError as error:
        raise SearchError(f"a point is picked by a metric and a bound; {_FORM}, but got {text!r}") from error
    some = [p for p in probes if metric == "drop" or metric in p.costs]
    if not some:
        raise SearchError(f"no probe of this search has a {metric}: search with --cost {metric}")

    def value(probe: Probe) -> float:
        return probe.lost.points if metric == "drop" else probe.costs[metric]

    inside = [p for p in some if (value(p) < bound if strict else value(p) <= bound)]
    if not inside:
        near = min(some, key=value)
        raise SearchError(
            f"no probe has {text.strip()}: of {len(some)} the nearest has {metric}={value(near):.4g}; pick with a "
            "larger bound, or search on"
        )
    if metric == "drop":
        return min(inside, key=lambda p: (p.costs["macs"], -p.quality.top1, p.number))
    return min(inside, key=lambda p: (-p.quality.top1, p.costs[metric], p.number))
