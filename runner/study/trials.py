"""Trials of a study: the one that this process runs, and what the stored ones say about themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.schema import Experiment
from runner.study.space import Dimension, Value
from runner.tracking.process_identity import ProcessIdentity


@dataclass(frozen=True)
class RunningTrial:
    """A trial that a worker runs: its values, and the experiment that has them."""

    number: int
    values: dict[str, Value]
    experiment: Experiment
    is_baseline: bool

    @property
    def name(self) -> str:
        """Name of its run in MLflow: `trial 7: lr=0.00031 dropout=0.42`."""
        return f"trial {self.number}: {'baseline' if self.is_baseline else short_values(self.values)}"


def short_values(values: Mapping[str, Value]) -> str:
    """Values of settings in short: `lr=0.00031 dropout=0.42`."""
    return " ".join(
        f"{setting.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for setting, value in values.items()
    )


def suggest(trial: Trial, dimension: Dimension) -> Value:
    """The value of a dimension in a trial, as the study's sampler draws it."""
    value: Value = trial._suggest(dimension.setting, to_distribution(dimension))
    return value


def to_distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna's distribution."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.whole:
        step = int(dimension.step or 1)
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, step)
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def is_baseline(trial: FrozenTrial) -> bool:
    """Whether a trial has the baseline's values because it is the baseline."""
    return "baseline" in trial.user_attrs


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended because its worker did. A trial that failed by itself has stored a reason."""
    return "lost" in trial.user_attrs or (trial.state == TrialState.FAIL and "reason" not in trial.user_attrs)


def state_name(trial: FrozenTrial) -> str:
    """Optuna's name of a trial's state, or LOST."""
    return "LOST" if is_lost(trial) else trial.state.name


def count_states(trials: list[FrozenTrial]) -> str:
    """`12 complete, 3 pruned`; empty without trials."""
    names = [state_name(trial).lower() for trial in trials]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def owner_of(trial: FrozenTrial) -> ProcessIdentity | None:
    """The worker that runs or ran a trial; None in the moment before it has stored itself."""
    return ProcessIdentity(*trial.user_attrs["owner"]) if "owner" in trial.user_attrs else None


def is_sound(trial: FrozenTrial) -> bool:
    """Whether the value and the owner of a stored trial have the types they must have."""
    values = trial.values or []
    if trial.state == TrialState.COMPLETE and not (
        len(values) == 1 and type(values[0]) in (int, float) and math.isfinite(values[0])
    ):
        return False
    match trial.user_attrs.get("owner", ["", 0, 0.0]):
        case [str(), int(pid), int() | float() as started]:
            return not isinstance(pid, bool) and not isinstance(started, bool)
    return False
