"""Pruning algorithms. Each is a function in the table `PRUNERS`, which is all there is to add for a new one.

A pruner sees the validation metric after every epoch or, if a trial has several training seeds, after every seed.
Optuna is imported only where a pruner is built, so that command lines can read the table at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


def _median(epochs: int, seeds: int) -> BasePruner:
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 5 if seeds == 1 else 0)


def _hyperband(epochs: int, seeds: int) -> BasePruner:
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs if seeds == 1 else seeds)


def _wilcoxon(epochs: int, seeds: int) -> BasePruner:
    from optuna.pruners import WilcoxonPruner

    return WilcoxonPruner(p_threshold=0.1, n_startup_steps=min(2, seeds - 1))


def _none(epochs: int, seeds: int) -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS: dict[str, Callable[[int, int], BasePruner]] = {
    "auto": lambda epochs, seeds: (_wilcoxon if seeds > 1 else _median)(epochs, seeds),
    "median": _median,
    "hyperband": _hyperband,
    "wilcoxon": _wilcoxon,
    "none": _none,
}
"""Name → function of (epochs of a training, training seeds of a trial)."""
