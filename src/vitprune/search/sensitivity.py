"""How much each part of each block matters: what is lost when a fraction of it, and nothing else, is removed.

One part of a big model hardly moves top-1, by less than its error on some thousand images. So the main number is the
divergence from the dense model's predictions, which shows small changes on every image; top-1 stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitprune.report.sensitivity import SensitivityRow
from vitprune.search.errors import SearchError, Spent
from vitprune.search.parts import Part, PartsPer, parts_of
from vitprune.search.prober import Limits, Prober
from vitprune.search.quality import Drop

FRACTIONS = (0.25, 0.5, 0.75)
SPENT = 0.75  # of the probes and minutes that a search may spend; the rest is for plans that remove from all parts


@dataclass(frozen=True, slots=True)
class Level:
    """One probe, in which one part alone is smaller."""

    asked: float  # fraction of the part's units to remove
    removed: float  # the fraction that the rounding permits
    sizes: Mapping[str, int]  # of the part's groups
    saved: Mapping[str, float]  # metric -> share of the dense model's cost that goes
    lost: Drop  # points of top-1
    divergence: float  # nats


@dataclass(frozen=True, slots=True)
class Curve:
    """A part, and what was measured of it."""

    part: Part
    levels: tuple[Level, ...]  # by rising fraction removed; fewer than asked where rounding makes them the same


@dataclass(frozen=True, slots=True)
class Curves:
    """Every part's curve; parts of which nothing was measured have no levels."""

    curves: tuple[Curve, ...]
    missing: int  # levels that the limits left out

    def rows(self) -> tuple[SensitivityRow, ...]:
        """A row per level, for the tables and pictures of the report; one without numbers for each part without any."""
        rows = []
        for curve in self.curves:
            part = curve.part
            for level in curve.levels:
                rows.append(
                    SensitivityRow(
                        part.row,
                        part.block,
                        level.asked,
                        level.removed,
                        level.divergence,
                        level.lost.points,
                        level.lost.error,
                        dict(level.saved),
                    )
                )
            if not curve.levels:
                rows.append(SensitivityRow(part.row, part.block))
        return tuple(rows)


def curves_of(
    prober: Prober,
    fractions: Sequence[float] = FRACTIONS,
    per: PartsPer = "kind",
    further: Mapping[str, Sequence[float]] | None = None,
) -> Curves:
    """What is lost at each fraction of each part (see `parts_of`), from one probe each; further: more, by part's name.

    A part removes the permitted amount that is nearest to the fraction, and at least something. Probes are those of
    the prober: recorded, limited, and not made twice. The largest fraction comes first, of all parts, so that the whole
    range is known of every part when the limits end it; three quarters of what they permit is used at most.

    Raises SearchError for fractions outside of (0, 1], and when nothing may shrink.
    """
    check_fractions(fractions)
    parts = parts_of(prober, per)
    asked: dict[tuple[str, int], float] = {}  # part and choice -> the nearest of the fractions that mean it
    wanted = [(part, fraction) for fraction in sorted(fractions, reverse=True) for part in parts]
    wanted += [(part, fraction) for part in parts for fraction in (further or {}).get(part.name, ())]
    for part, fraction in wanted:
        choice = part.nearest(fraction)
        before = asked.get((part.name, choice))
        if before is None or abs(part.removed[choice] - fraction) <= abs(part.removed[choice] - before):
            asked[part.name, choice] = fraction
    by_name = {part.name: part for part in parts}
    found: dict[str, dict[int, Level]] = {part.name: {} for part in parts}
    prober.said.start("sensitivity", len(asked))
    limits = prober.limits
    prober.limits = Limits(
        None if limits.trials is None else int(SPENT * limits.trials),
        None if limits.minutes is None else SPENT * limits.minutes,
    )
    try:
        for (name, choice), fraction in asked.items():
            found[name][choice] = _level(prober, by_name[name], choice, fraction)
            prober.said.advance()
    except Spent as spent:
        prober.said.line(f"sensitivity: not all was measured, as {spent}")
    finally:
        prober.limits = limits
    done = sum(map(len, found.values()))
    prober.said.done(f"{done} of {len(asked)} levels of {len(parts)} parts")
    curves = tuple(Curve(p, tuple(found[p.name][choice] for choice in sorted(found[p.name]))) for p in parts)
    return Curves(curves, len(asked) - done)


def check_fractions(fractions: Sequence[float]) -> None:
    """Pass for fractions that can be removed. Raises SearchError for none, and outside of (0, 1]."""
    bad = ", ".join(f"{f:g}" for f in fractions if not 0 < f <= 1)
    if bad or not fractions:
        raise SearchError(f"fractions to remove must be in (0, 1], but got {bad or 'none'}")


def _level(prober: Prober, part: Part, choice: int, asked: float) -> Level:
    sizes = part.choices[choice]
    plan = prober.by_sizes(sizes)
    probe = prober.probe(plan, "sensitivity", part=part.name, removed=part.removed[choice])
    saved = {metric: 1 - share for metric, share in probe.costs.items()}
    return Level(asked, part.removed[choice], sizes, saved, probe.lost, probe.quality.divergence)
