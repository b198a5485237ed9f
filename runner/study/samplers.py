"""Samplers and pruners by name. What a sampler draws for a trial is a function of (study seed, trial number)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from runner.study.space import Dimension, Space
from runner.utils import hashing

GRID_POINTS = 5
"""Values of a range without steps, on a grid."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna draws a setting from."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, step)
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


class Keyed(BaseSampler):
    """A sampler that is built anew for each trial, seeded by the trial's number.

    So a study that was stopped goes on as if it had not been, and two workers never draw the same numbers.
    """

    def __init__(self, name: str, space: Space, seed: int) -> None:
        self.name = name
        self.space = space
        self.seed = seed
        self._inner: BaseSampler = self._build(0)

    def _build(self, number: int) -> BaseSampler:
        seed = hashing.derive_seed("sampler", self.seed, number) % 2**32
        if self.name == "random":
            return RandomSampler(seed=seed)
        if self.name == "gp":
            return GPSampler(seed=seed, deterministic_objective=False)
        if self.name == "cmaes":
            return CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self.name == "grid":
            return GridSampler({each.setting: points(each) for each in self.space.dimensions}, seed=self.seed)
        conditional = any(each.when for each in self.space.dimensions)
        return TPESampler(seed=seed, group=conditional)

    def exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether a grid has no point left that nobody has tried, or is trying."""
        if self.name != "grid":
            return False
        tried = {each.system_attrs["grid_id"] for each in trials if "grid_id" in each.system_attrs}
        return len(tried) >= math.prod(len(points(each)) for each in self.space.dimensions)

    def reseed_rng(self) -> None:
        """Nothing to do: see `before_trial`."""

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
        if not isinstance(self._inner, GridSampler):  # it would stop a loop that is not Optuna's
            self._inner.after_trial(study, trial, state, values)


def points(dimension: Dimension) -> list[Any]:
    """A dimension's values on a grid: its categories, its steps, or a few along its range."""
    if dimension.choices:
        return list(dimension.choices)
    low, high = dimension.low, dimension.high
    if dimension.step:
        count = int((high - low) / dimension.step + 1e-9) + 1
        return [min(high, type(low)(low + place * dimension.step)) for place in range(count)]
    if dimension.whole and high - low < GRID_POINTS and not dimension.log:
        return list(range(int(low), int(high) + 1))
    spread = np.geomspace(low, high, GRID_POINTS) if dimension.log else np.linspace(low, high, GRID_POINTS)
    spread[0], spread[-1] = low, high
    return sorted({round(value) for value in spread.tolist()}) if dimension.whole else spread.tolist()


def build_pruner(name: str, epochs: int, fits: int) -> BasePruner:
    """The pruner called `name`; it hears of every epoch, or with several fits a trial of every fit."""
    if name == "auto":
        name = "wilcoxon" if fits > 1 else "median"
    if name == "wilcoxon":
        return WilcoxonPruner(p_threshold=0.1, n_startup_steps=min(2, fits - 1))
    if name == "hyperband":
        return HyperbandPruner(
            min_resource=max(1, epochs // 9), max_resource=max(fits, epochs) if fits == 1 else fits
        )
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5 if fits == 1 else 0)
    return NopPruner()
