"""Runs that train an experiment several times: with other seeds, and on each fold of a cross-validation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from runner.config.schema import Experiment

Over = Literal["seed", "split", "both"]
COUNTED = {
    "seed": "training seeds on one split",
    "split": "splits with one training seed",
    "both": "splits, each with another training seed",
}
"""What a spread is over, after the number of runs."""
COUNTED_WITH_FOLDS = {
    "seed": "training seeds",
    "split": "divisions into folds with one training seed",
    "both": "divisions into folds, each with another training seed",
}
"""The same for the repetitions of a cross-validation."""


@dataclass(frozen=True)
class Repeat:
    """How often an experiment, or each of its folds, is trained, and which of its seeds count up."""

    count: int = 1
    over: Over = "seed"

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"--repeat {self.count}" + f" --repeat-over {self.over}" * (self.over != "seed")

    def describe(self, experiment: Experiment) -> str:
        """`3 training seeds on one split`, `5 folds`, `5 folds × 3 training seeds`."""
        if not experiment.split.is_cross_validation:
            return f"{self.count} {COUNTED[self.over]}"
        folds = f"{experiment.split.folds} folds"
        return folds + f" × {self.count} {COUNTED_WITH_FOLDS[self.over]}" * (self.count > 1)

    def experiments(self, experiment: Experiment) -> list[Experiment]:
        """The experiments to train, in order: all folds, if there are folds, with each seed."""
        train, split = (self.over in names for names in (("seed", "both"), ("split", "both")))
        seed, folds = experiment.seed, experiment.split
        seeds = [
            dataclasses.replace(seed, train=seed.train + index * train, split=seed.split + index * split)
            for index in range(self.count)
        ]
        chosen = range(folds.folds or 1) if folds.is_cross_validation else [folds.fold]
        return [
            dataclasses.replace(experiment, seed=each, split=dataclasses.replace(folds, fold=fold))
            for each in seeds
            for fold in chosen
        ]

    def label(self, experiment: Experiment) -> str:
        """What distinguishes one of the experiments: `seed 3`, `split 3 seed 4`, `fold 2`, `fold 2 seed 3`."""
        seed, fold, is_repeated = experiment.seed, experiment.split.fold, self.count > 1
        parts = [
            ("split", seed.split, is_repeated and self.over != "seed"),
            ("fold", fold, fold is not None),
            ("seed", seed.train, is_repeated and self.over != "split"),
        ]
        return " ".join(f"{name} {number}" for name, number, is_shown in parts if is_shown)
