"""The samplers of Optuna that a study can ask, and what they are told of a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial

from vitprune.search.goal import Goal
from vitprune.search.probe import Probe

METHODS = ("bayes", "nsga2")
OUTCOME = "outcome"  # attribute of a finished trial
Make = Callable[[int], BaseSampler]


def values(goal: Goal, cost: float, missed: float, divergence: float) -> tuple[float, float]:
    """What is minimised. With a drop: the cost (share of the dense model's), and the cost plus the points beyond it.

    With a budget: the cost, if it is above the budget, and the divergence from the dense model, which tells of smaller
    differences than top-1.

    missed: see `excess`. With cost and divergence themselves a tenth of all trials, which the sampler takes for good
    ones, would be spread over the whole front, and few look where the answer is. The front is one of probes anyway.
    """
    if goal.max_drop is not None:
        return cost, cost + max(0.0, missed)
    assert goal.budget is not None
    return max(cost, goal.budget), divergence


def excess(goal: Goal, probe: Probe) -> float:
    """By how much the goal is missed."""
    if goal.max_drop is not None:
        return goal.lost(probe) - goal.max_drop
    assert goal.budget is not None
    return probe.costs[goal.cost] / goal.budget - 1


def samplers(method: str, axes: int, begun: int) -> Make:
    """seed -> a sampler. axes: number of shares. begun: trials before the first that the sampler itself decides."""
    if method == "bayes":
        return lambda seed: TPESampler(
            seed=seed,
            n_startup_trials=begun,
            multivariate=True,
            constant_liar=True,
            constraints_func=_constraints,
        )
    size = max(6, min(30, 2 * axes))
    return lambda seed: NSGAIISampler(seed=seed, population_size=size, constraints_func=_constraints)


def _constraints(trial: FrozenTrial) -> Sequence[float]:
    """At most 0 where the goal holds."""
    return (float(trial.user_attrs.get(OUTCOME, {}).get("excess", 1.0)),)
