"""The probes that none beats."""

from __future__ import annotations

from collections.abc import Iterable

from vitprune.search.probe import Probe


def front(probes: Iterable[Probe], cost: str) -> list[Probe]:
    """Those that no other one beats in both cost and top-1, cheapest first; of equal ones the first."""
    found: list[Probe] = []
    for probe in sorted(probes, key=lambda p: (p.costs[cost], -p.quality.top1, p.number)):
        if not found or probe.quality.top1 > found[-1].quality.top1:
            found.append(probe)
    return found
