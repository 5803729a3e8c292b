"""Solve, measure, correct: until the time asked is the time obtained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from vitprune.allocate.target import Target
from vitprune.arrays import Floats, Ints
from vitprune.errors import TargetError
from vitprune.latency.clock import Clock
from vitprune.latency.solver import Solution, Solver
from vitprune.progress import Progress

TURNS = (7, 300)  # of one comparison
SECONDS = 20.0  # of one comparison, at most (but for the fewest turns)
CERTAIN = 0.005  # half-width of the ratio's 95 % interval, relative, at which a comparison ends
NEAR = 0.5  # share of the tolerance within which the search ends: the rest is for the next measurement's noise
RESOLUTION = 1e-3  # of the dense model's time: budgets that differ by less are not told apart


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Dense and pruned model, measured in turns."""

    times: Floats  # (turns, 2) ms: dense, pruned

    @property
    def ratio(self) -> float:
        """Pruned to dense: the median over the turns, within which both met the same mood of the machine."""
        return float(np.median(self.times[:, 1] / self.times[:, 0]))

    @property
    def dense_ms(self) -> float:
        """Median of the dense model."""
        return float(np.median(self.times[:, 0]))

    @property
    def pruned_ms(self) -> tuple[float, float, float]:
        """(median, 10th, 90th percentile) of the pruned model."""
        p10, median, p90 = np.percentile(self.times[:, 1], (10, 50, 90))
        return float(median), float(p10), float(p90)

    def got(self, target: Target) -> float:
        """What was obtained, in the target's own unit."""
        return self.pruned_ms[0] if target.absolute else self.ratio

    def uncertainty(self, target: Target) -> float:
        """Half of the 95 % interval of `got` (by order statistics), relative to it."""
        sample = np.sort(self.times[:, 1] if target.absolute else self.times[:, 1] / self.times[:, 0])
        n = len(sample)
        low = max(0, int(np.floor(n / 2 - 0.98 * np.sqrt(n))))
        return float((sample[n - 1 - low] - sample[low]) / 2 / np.median(sample))


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The end of a search."""

    solution: Solution
    compared: Compared
    rounds: int
    note: str  # "" when within the tolerance


def compare(clock: Clock, dense: nn.Module, pruned: nn.Module, target: Target) -> Compared:
    """Both models in turns, for as long as the median is not certain and time allows."""
    times = clock.whole([dense, pruned], TURNS[0])
    most = int(np.clip(1000 * SECONDS / max(1e-9, times.sum(axis=1).mean()), *TURNS))
    while len(times) < most and (len(times) < 2 * TURNS[0] or Compared(times).uncertainty(target) > CERTAIN):
        times = np.concatenate([times, clock.whole([dense, pruned], min(len(times), most - len(times)))])
    return Compared(times)


def search(
    solver: Solver,
    target: Target,
    dense_ms: float,
    build: Callable[[Ints], nn.Module],
    dense: nn.Module,
    clock: Clock,
    *,
    tolerance: float,
    rounds: int,
    smallest: Callable[[Compared], TargetError],
    progress: Progress,
) -> Found:
    """The solution whose measured time comes nearest to the target.

    The budget of the table is corrected by what was measured: multiplied first, halved between the nearest budgets on
    either side when that leaves the bracket. A solution within half of the tolerance is measured a second time, and
    both measurements together must hold it there. smallest: the error when even the quickest sizes are too slow.

    Raises TargetError for a target out of reach.
    """
    low, high = solver.least, solver.most
    budget = target.value / dense_ms if target.absolute else target.value
    seen: dict[bytes, Compared] = {}
    best: tuple[Solution, Compared] | None = None
    used, note = 0, ""

    def miss(compared: Compared) -> float:
        return compared.got(target) / target.value - 1.0

    progress.start(f"meeting {target}", rounds)
    for _ in range(4 * rounds):
        budget = float(np.clip(budget, solver.least, solver.most))
        solution = solver.solve(budget)
        key = solution.sizes.tobytes()
        known = seen.get(key)
        if known is None:
            if used == rounds:
                break
            small = build(solution.sizes)
            known = compare(clock, dense, small, target)
            if abs(miss(known)) <= NEAR * tolerance:
                known = Compared(np.concatenate([known.times, compare(clock, dense, small, target).times]))
            seen[key], used = known, used + 1
            progress.advance(1, asked=target.value, got=known.got(target))
        if best is None or abs(miss(known)) < abs(miss(best[1])):
            best = (solution, known)
        if abs(miss(known)) <= NEAR * tolerance:
            break
        if miss(known) > 0:
            high = min(high, budget)
            if budget <= solver.least:
                if miss(known) > tolerance:
                    progress.done()
                    raise smallest(known)
                break
        else:
            low = max(low, budget)
            if budget >= solver.most:
                break
        if high - low <= RESOLUTION * solver.most:
            note = "the rounding steps on either side lie further off" if len(seen) > 1 else ""
            break
        budget = solution.predicted / (1.0 + miss(known))
        if not low < budget < high:
            budget = (low + high) / 2
    progress.done()
    assert best is not None
    solution, compared = best
    if abs(miss(compared)) <= tolerance:
        note = ""
    else:
        _, p10, p90 = compared.pruned_ms
        note = note or f"{used} rounds came no nearer, with times from {p10:.4g} to {p90:.4g} ms"
        note = f"obtained {target.metric}={compared.got(target):.4g}{'ms' if target.absolute else 'x'} for {target}: {note}"
    return Found(solution, compared, used, note)
