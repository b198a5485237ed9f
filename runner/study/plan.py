"""The plan of a study: its baseline, its search space, its objective, and how it is searched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.metadata import changes_results
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten
from runner.evaluation.metrics import METRICS, Metric
from runner.study.space import Space
from runner.utils.text import one_line

ABSENT = "not there"
"""Stands for a setting that one of two plans lacks."""


@dataclass(frozen=True)
class Plan:
    """What a study searches, and how."""

    name: str
    baseline: Experiment
    space: Space
    storage: str
    """Path of a journal file, or an Optuna URL."""
    objective: str = "top1"
    """Name of the validation metric to optimize."""
    seeds: int = 1
    """Training seeds of a trial; its value is their mean."""
    trials: int = 50
    """Total number of trials, over all workers and commands."""
    sampler: str = "tpe"
    pruner: str = "auto"
    sampler_seed: int = 0

    @property
    def metric(self) -> Metric:
        """The objective's entry in the table of metrics."""
        return METRICS[self.objective]

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers and commands that share the study, as JSON-like values."""
        settings = flatten(as_tree(self.baseline))
        compared = {name: value for name, value in settings.items() if changes_results(name)}
        if compared.get("model.weights"):
            compared["model.weights"] = Path(str(compared["model.weights"])).name
        return {
            "objective": self.objective,
            "seeds": self.seeds,
            "space": self.space.as_plain(),
            "baseline": compared,
        }


def describe_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """How two identities of plans differ, a clause for each: `seeds was 1 and is 3 now`."""
    one, other = flatten(stored), flatten(wanted)
    return [
        one_line(f"{name} was {one.get(name, ABSENT)!r} and is {other.get(name, ABSENT)!r} now", 300)
        for name in sorted({*one, *other})
        if one.get(name, ABSENT) != other.get(name, ABSENT)
    ]
