"""What to try next: a sampler of Optuna, whose proposals are made realistic and new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vitprune.search.storage import quiet

GIVEN = "given"  # attribute of trials whose shares were set by us, not proposed

Repair = Callable[[Mapping[str, float], np.random.Generator], dict[str, float]]


class Proposals(BaseSampler):
    """Asks a new sampler for every trial, seeded by the trial's place among those that did not fail.

    A sampler of Optuna remembers nothing but its random state that is not in the storage, so that a study of one
    worker goes the same way whether it is stopped and goes on, or runs through.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        space: Mapping[str, BaseDistribution],
        seed: int,
        repair: Repair,
        designed: Mapping[int, Mapping[str, float]] | None = None,
    ) -> None:
        """make: seed -> sampler. repair: proposed shares -> those of a plan. designed: place of a trial -> proposal."""
        self.make, self.space, self.seed, self.repair = make, dict(space), seed, repair
        self.designed = designed or {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of it: shares are proposed together."""
        return dict(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The sampler's shares, repaired."""
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        place = trial.number - sum(other.number < trial.number for other in failed)
        drawn = np.random.SeedSequence([self.seed, place]).generate_state(2)
        with quiet():
            inner = self.make(int(drawn[0]))
            found = inner.sample_relative(study, trial, dict(search_space))
            for name, distribution in search_space.items():
                if name not in found:
                    found[name] = inner.sample_independent(study, trial, name, distribution)
        if trial.user_attrs.get(GIVEN):
            return found
        found.update(self.designed.get(place, {}))
        return self.repair(found, np.random.default_rng(drawn[1]))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """For a share that was given to no trial: the largest."""
        return getattr(param_distribution, "high", 1.0)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Lets the sampler note the constraints."""
        with quiet():
            self.make(0).after_trial(study, trial, state, values)
