"""Grid search: every point of a space once, also where some settings are searched on a condition only."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from runner.study.space import Dimension, Space, Value

GRID_POINTS = 5
"""Grid points of a range without steps."""
POINT = "grid_point"
"""Attribute of a trial: its point, as values by setting."""


class GridSampler(BaseSampler):
    """Gives each trial a point that no other trial has, the baseline included, in an order that depends on the seed.

    Optuna's own takes all combinations of values: it repeats a point for each value of a setting that is not searched.

    Args:
        space: The search space, whose conditions name searched settings only.
        seed: The study's seed.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.points = _distinct_points(space)
        random.Random(seed).shuffle(self.points)  # noqa: S311 (no secret)

    def is_exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether all points have been tried, or are being tried."""
        return not self._left(trials)

    def reseed_rng(self) -> None:
        """Does nothing: the order is that of the study."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        left = self._left(study._storage.get_all_trials(study._study_id, deepcopy=False))
        # By number, so that hosts that ask at the same moment get different points. Trial 0 is the baseline.
        place = trial.number - 1
        point = left.get(place) or next(reversed(left.values()), self.points[place % len(self.points)])
        study._storage.set_trial_system_attr(trial._trial_id, POINT, point)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return trial.system_attrs[POINT][param_name]

    def _left(self, trials: Sequence[FrozenTrial]) -> dict[int, dict[str, Value]]:
        """The points that no trial has, by their place in the order."""
        taken = {
            _key(values)
            for trial in trials
            for values in (
                trial.params,
                trial.system_attrs.get(POINT),
                trial.system_attrs.get("fixed_params"),
            )
            if values is not None
        }
        return {place: point for place, point in enumerate(self.points) if _key(point) not in taken}


def grid_points(dimension: Dimension) -> list[Any]:
    """The values of a dimension on a grid: its choices, its steps, or `GRID_POINTS` values along its range."""
    if dimension.choices:
        return list(dimension.choices)
    low, high = dimension.low, dimension.high
    if dimension.step:
        count = int((high - low) / dimension.step + 1e-9) + 1
        return [min(high, type(low)(low + index * dimension.step)) for index in range(count)]
    if dimension.whole and high - low < GRID_POINTS and not dimension.log:
        return list(range(int(low), int(high) + 1))
    import numpy as np

    spread = np.geomspace(low, high, GRID_POINTS) if dimension.log else np.linspace(low, high, GRID_POINTS)
    spread[0], spread[-1] = low, high
    return sorted({round(value) for value in spread.tolist()}) if dimension.whole else spread.tolist()


def _distinct_points(space: Space) -> list[dict[str, Value]]:
    points: list[dict[str, Value]] = [{}]
    for dimension in space.dimensions:
        values = [{dimension.setting: value} for value in grid_points(dimension)]
        points = [
            {**point, **more} for point in points for more in (values if dimension.applies(point) else [{}])
        ]
    return points


def _key(point: Mapping[str, Value]) -> str:
    """The same text for the same values, whether a number is whole or not; True is not 1."""
    return json.dumps(
        {name: float(value) if type(value) is int else value for name, value in point.items()}, sort_keys=True
    )
