"""At which ratio pruned models break, in domains that training saw and in those that it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitprune.report.domains import DomainLine, DomainStudy
from vitprune.report.paired import Interval

LIMIT = 0.01  # of top-1 in 0..1: a point


@dataclass(frozen=True, slots=True)
class Edge:
    """From which ratio on a mean loses too much."""

    at: float | None  # the smallest such ratio; None: at none that was measured
    up_to: float | None  # the largest ratio at which all that the mean is of was measured; None: at none


@dataclass(frozen=True, slots=True)
class Break:
    """Where a form and score of one model loses too much.

    Too much is a drop below the dense model of more than a limit and the standard error together, where several seeds
    tell one. Drops are paired by seed.
    """

    model: str
    line: str
    by_domain: Mapping[str, float]  # held-out domain -> smallest ratio, for those that break, the first one first
    outside: Edge  # of the mean over held-out domains
    inside: Edge  # of the mean over source domains


def too_much(drop: Interval, limit: float = LIMIT) -> bool:
    """Whether a drop of top-1, in 0..1, is more than a limit and its standard error together."""
    return drop.mean - (drop.se or 0.0) > limit


def breaks(found: DomainStudy, limit: float = LIMIT) -> tuple[Break, ...]:
    """One for every model, form and score of a study; `limit` is a difference of top-1 in 0..1."""
    lines: dict[tuple[str, str], list[DomainLine]] = {}
    for line in found.lines():
        if line.ratio:
            lines.setdefault((line.model, line.line), []).append(line)
    return tuple(_break(of, limit) for of in lines.values())


def _break(lines: list[DomainLine], limit: float) -> Break:
    names = list(dict.fromkeys(name for line in lines for name in line.drop_by_domain))
    places = {n: _edge({one.ratio: one.drop_by_domain.get(n) for one in lines}, limit).at for n in names}
    known = {name: ratio for name, ratio in places.items() if ratio is not None}
    return Break(
        lines[0].model,
        lines[0].line,
        {name: known[name] for name in sorted(known, key=lambda n: known[n])},
        _edge({one.ratio: one.drop_outside for one in lines}, limit),
        _edge({one.ratio: one.drop_inside for one in lines}, limit),
    )


def _edge(drops: Mapping[float, Interval | None], limit: float) -> Edge:
    """drops: by ratio; None where not all was measured."""
    known = {ratio: drop for ratio, drop in sorted(drops.items()) if drop is not None}
    return Edge(next((ratio for ratio, drop in known.items() if too_much(drop, limit)), None), max(known, default=None))
