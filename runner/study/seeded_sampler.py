"""A sampler whose draws for a trial are a function of the study's seed, the trial's number and the earlier trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from runner.study.algorithms import SAMPLERS
from runner.study.grid import GridSampler
from runner.study.space import Space
from runner.utils import hashing


class SeededSampler(BaseSampler):
    """Builds a new sampler of an algorithm for each trial, seeded by the trial's number.

    So an interrupted study continues as if it had not been interrupted, and two workers never draw the same numbers.

    Args:
        name: Name of the algorithm in `SAMPLERS`.
        space: The search space.
        seed: The study's seed.
    """

    def __init__(self, name: str, space: Space, seed: int) -> None:
        self.name = name
        self.space = space
        self.seed = seed
        self._inner = self._build(0)

    def _build(self, number: int) -> BaseSampler:
        algorithm = SAMPLERS[self.name]
        trial_seed = hashing.derive_seed("sampler", self.seed, number) % 2**32
        return algorithm.build(self.space, trial_seed if algorithm.seeded_per_trial else self.seed)

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether it is a grid whose points have all been tried, or are being tried."""
        return isinstance(self._inner, GridSampler) and self._inner.is_exhausted(trials)

    def reseed_rng(self) -> None:
        """Does nothing: every trial has a seed of its own."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner = self._build(trial.number)
        if "fixed_params" not in trial.system_attrs:
            self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:
            return {}
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)
