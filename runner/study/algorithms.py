"""Sampling and pruning algorithms. One entry in the table `SAMPLERS` or `PRUNERS` is all there is to add for a new one.

A pruner sees the validation metric after every epoch or, if a trial has several trainings (seeds, folds), after each.
Optuna is imported only where an algorithm is built, so that command lines can read the tables at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.study.space import Space
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Algorithm:
    """How a sampler is built, and what it needs."""

    build: Callable[[Space, int], BaseSampler]
    """Function of the search space and the seed of a trial."""
    package: str = ""
    """Package that the sampler imports and Optuna does not install."""
    extra: str = ""
    """Our optional dependency that holds the package."""
    seeded_per_trial: bool = True
    """Whether every trial has a seed of its own; otherwise all have the study's."""


def _tpe(space: Space, seed: int) -> BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, group=any(dimension.when for dimension in space.dimensions))


def _gp(space: Space, seed: int) -> BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, deterministic_objective=False)


def _cmaes(space: Space, seed: int) -> BaseSampler:
    from optuna.samplers import CmaEsSampler

    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _random(space: Space, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _grid(space: Space, seed: int) -> BaseSampler:
    from runner.study.grid import GridSampler

    return GridSampler(space, seed)


SAMPLERS = {
    "tpe": Algorithm(_tpe),
    "gp": Algorithm(_gp, package="scipy"),
    "cmaes": Algorithm(_cmaes, package="cmaes", extra="cma"),
    "random": Algorithm(_random),
    "grid": Algorithm(_grid, seeded_per_trial=False),
}


def check_sampler(name: str) -> None:
    """Raises `UserError` if the package that a sampler needs is not installed."""
    package, extra = SAMPLERS[name].package, SAMPLERS[name].extra
    if package and importlib.util.find_spec(package) is None:
        wanted = f"'vgg-runner[{extra}]'" if extra else package
        raise UserError(f"The sampler {name} needs the package {package}: pip install {wanted}.")


def _median(epochs: int, trainings: int) -> BasePruner:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5 if trainings == 1 else 0)


def _hyperband(epochs: int, trainings: int) -> BasePruner:
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(
        min_resource=max(1, epochs // 9), max_resource=epochs if trainings == 1 else trainings
    )


def _wilcoxon(epochs: int, trainings: int) -> BasePruner:
    from optuna.pruners import WilcoxonPruner

    return WilcoxonPruner(p_threshold=0.1, n_startup_steps=min(2, trainings - 1))


def _none(epochs: int, trainings: int) -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS: dict[str, Callable[[int, int], BasePruner]] = {
    "auto": lambda epochs, trainings: (_wilcoxon if trainings > 1 else _median)(epochs, trainings),
    "median": _median,
    "hyperband": _hyperband,
    "wilcoxon": _wilcoxon,
    "none": _none,
}
"""Name → function of (epochs of a training, trainings of a trial)."""
