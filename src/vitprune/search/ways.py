"""One-parameter families of plans, from the dense model to the smallest: what a bisection runs along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitprune.allocate import Target
from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.search.probe import Probe
from vitprune.search.prober import Prober
from vitprune.search.space import Shares

At = Callable[[float], Plan]  # t in (0, 1]: 1 is the dense model, and plans grow with t


@dataclass(frozen=True, slots=True)
class Way:
    """A family by its name."""

    name: str
    at: At
    weights: Shares | None = None  # where it is `Space.along` these


def along(prober: Prober, weights: Shares, name: str) -> Way:
    """Shares t^w, w being the axis' weight."""
    return Way(name, lambda t: prober.plan(prober.space.along(weights, t)), dict(weights))


def analytic(prober: Prober, cost: str) -> Way:
    """What the scores alone choose at every cost: no share is set. Below what they reach, the smallest plan."""
    metric: Any = cost if cost != "latency" else "macs"

    def at(t: float) -> Plan:
        try:
            return prober.analytic(Target(metric, t))
        except TargetError:
            return prober.plan(dict.fromkeys(prober.space.names, 0.0))

    return Way("analytic", at)


def uniform(prober: Prober) -> Way:
    """Every group keeps the same share t: the one fixed ratio of most tools."""
    return Way("uniform", lambda t: prober.plan(dict.fromkeys(prober.space.names, t), "local"))


def cascade(prober: Prober) -> Way:
    """Every block keeps the same share of what the block before it keeps, so that the last of L keeps t.

    As far as weights go after the cascade of CP-ViT (Song et al., arXiv 2203.04570), whose ratios grow with depth.
    Groups outside of blocks keep their size.
    """
    graph, names = prober.graph, [n for axis in prober.space.axes for n in axis.groups]
    blocks = sorted({b for n in names if (b := graph[n].block) is not None})
    depth = {b: (i + 1) / len(blocks) for i, b in enumerate(blocks)}

    def at(t: float) -> Plan:
        return prober.by_group({n: t ** depth[b] for n in names if (b := graph[n].block) is not None})

    return Way("cascade", at)


def at_cost(prober: Prober, way: Way, metric: str, cost: float) -> Plan:
    """The dearest plan of the way that costs at most `cost` (1: dense).

    Raises TargetError when even the smallest costs more.
    """
    low, high = 1e-6, 1.0
    best: Plan | None = None
    smallest = prober.costs(way.at(low))[metric]
    while high - low > 1e-4:
        middle = (low * high) ** 0.5 if high > 4 * low else (low + high) / 2
        plan = way.at(middle)
        if prober.costs(plan)[metric] <= cost * (1 + 1e-9):
            low, best = middle, plan
        else:
            high = middle
        if best is None and high < 1e-4:
            break
    if cost >= 1:
        return way.at(1.0)
    if best is None:
        raise TargetError(
            f"{metric}={cost:.4g} cannot be reached this way ({way.name}): the smallest is {smallest:.4g}"
        )
    return best


def bisect(
    prober: Prober, way: Way, metric: str, holds: Callable[[Probe], bool], origin: str, tolerance: float
) -> Probe | None:
    """The cheapest probe of the way that holds, to `tolerance` of the dense cost; None where none does."""
    low, high = prober.costs(way.at(1e-6))[metric], 1.0
    found: Probe | None = None
    while high - low > tolerance:
        middle = (low + high) / 2
        probe = prober.probe(at_cost(prober, way, metric, middle), origin)
        if holds(probe):
            found, high = probe, min(middle, probe.costs[metric])
        else:
            low = middle
    return found
