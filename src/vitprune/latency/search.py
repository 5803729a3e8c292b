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
from vitprune.normal import Z95
from vitprune.progress import Progress

TURNS = (7, 600)  # of one comparison
CERTAIN = 0.005  # half-width of the ratio's 95 % interval, relative, at which a comparison ends
BLOCKS = 7  # successive parts of a comparison whose medians are compared
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

    def miss(self, target: Target) -> float:
        """Relative distance from the target: positive when too slow."""
        return self.got(target) / target.value - 1.0

    def uncertainty(self, target: Target) -> float:
        """Half of the 95 % interval of `got`, relative to it: the larger of two estimates.

        One is by order statistics, as if turns were independent; the other by the spread of the medians of successive
        blocks, since a busy machine stays busy for many turns.
        """
        sample = self.times[:, 1] if target.absolute else self.times[:, 1] / self.times[:, 0]
        n, middle = len(sample), float(np.median(sample))
        low = max(0, int(np.floor(n / 2 - 0.98 * np.sqrt(n))))
        ranked = np.sort(sample)
        medians = [float(np.median(block)) for block in np.array_split(sample, min(BLOCKS, n))]
        across = Z95 * float(np.std(medians, ddof=1)) / np.sqrt(len(medians)) if n > 1 else np.inf
        return max(float(ranked[n - 1 - low] - ranked[low]) / 2, across) / middle


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The end of a search."""

    solution: Solution
    compared: Compared
    rounds: int
    note: str  # "" when within the tolerance


def compare(
    clock: Clock, dense: nn.Module, pruned: nn.Module, target: Target, tolerance: float, seconds: float
) -> Compared:
    """Both models in turns, until the median is certain, or certainly off the target, or time is up."""
    times = clock.whole([dense, pruned], TURNS[0])
    most = int(np.clip(1000 * seconds / max(1e-9, times.sum(axis=1).mean()), *TURNS))
    while len(times) < most:
        so_far = Compared(times)
        doubt = so_far.uncertainty(target)
        enough = doubt <= CERTAIN or abs(so_far.miss(target)) > 2 * doubt + tolerance
        if enough and len(times) >= 2 * TURNS[0]:
            break
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
    seconds: float,
    smallest: Callable[[Compared], TargetError],
    progress: Progress,
) -> Found:
    """The solution whose measured time comes nearest to the target.

    The budget of the table is corrected by what was measured: multiplied first, halved between the nearest budgets on
    either side when that leaves the bracket. Only a measurement that is certainly off moves an end of the bracket; one
    that is not is repeated when its solution comes up again. A solution within half of the tolerance is measured a
    second time, for up to twice as long, and all of its measurements together must hold it there. smallest: the error
    when even the quickest sizes are too slow.

    Raises TargetError for a target out of reach.
    """
    low, high = solver.least, solver.most
    budget = target.value / dense_ms if target.absolute else target.value
    seen: dict[bytes, tuple[Solution, Compared]] = {}
    used, closed = 0, False
    progress.start(f"meeting {target}", rounds)
    for _ in range(4 * rounds):
        budget = float(np.clip(budget, solver.least, solver.most))
        solution = solver.solve(budget)
        key = solution.sizes.tobytes()
        known = seen[key][1] if key in seen else None
        if known is None or known.uncertainty(target) > abs(known.miss(target)):
            if used == rounds:
                break
            small = build(solution.sizes)
            known = _joined(known, compare(clock, dense, small, target, tolerance, seconds))
            if abs(known.miss(target)) <= NEAR * tolerance:
                known = _joined(known, compare(clock, dense, small, target, tolerance, 2 * seconds))
            seen[key], used = (solution, known), used + 1
            progress.advance(1, asked=target.value, got=known.got(target))
        miss = known.miss(target)
        sure = abs(miss) > known.uncertainty(target)
        if abs(miss) <= NEAR * tolerance or (miss <= 0 and budget >= solver.most):
            break
        if miss > 0 and budget <= solver.least:
            if miss <= tolerance:
                break
            if sure:
                progress.done()
                raise smallest(known)
        if sure:
            low, high = (low, min(high, budget)) if miss > 0 else (max(low, budget), high)
        if high - low <= RESOLUTION * solver.most:
            closed = True
            break
        budget = solution.predicted / (1.0 + miss)
        if budget <= low == solver.least:
            budget = solver.least  # the quickest there is: measured, it settles whether the target is in reach
        elif not low < budget < high:
            budget = (low + high) / 2
    progress.done()
    solution, compared = min(seen.values(), key=lambda pair: abs(pair[1].miss(target)))
    return Found(solution, compared, used, _note(compared, target, tolerance, closed, used))


def _joined(before: Compared | None, now: Compared) -> Compared:
    return now if before is None else Compared(np.concatenate([before.times, now.times]))


def _note(compared: Compared, target: Target, tolerance: float, closed: bool, rounds: int) -> str:
    """What to say of a result outside of the tolerance; "" for one inside."""
    if abs(compared.miss(target)) <= tolerance:
        return ""
    got = f"{compared.got(target):.4g}{'ms' if target.absolute else 'x'}"
    if closed:
        return f"obtained latency={got} for {target}: the rounding steps on either side lie further off"
    _, p10, p90 = compared.pruned_ms
    return f"obtained latency={got} for {target}: {rounds} rounds came no nearer (times from {p10:.4g} to {p90:.4g} ms)"
