"""Repeated runs: the same experiment with other seeds, to see how far its results vary."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from runner.config.schema import Experiment, SeedConfig

Over = Literal["seed", "split", "both"]
COUNTED = {
    "seed": "training seeds on one split",
    "split": "splits with one training seed",
    "both": "splits, each with another training seed",
}
"""What a spread is over, after the number of runs."""


@dataclass(frozen=True)
class Repeat:
    """How often an experiment is trained, and which of its seeds count up."""

    count: int = 1
    over: Over = "seed"

    @property
    def description(self) -> str:
        """`3 training seeds on one split`."""
        return f"{self.count} {COUNTED[self.over]}"

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"--repeat {self.count}" + f" --repeat-over {self.over}" * (self.over != "seed")

    def experiments(self, experiment: Experiment) -> list[Experiment]:
        """The experiments to train, in order: the first is `experiment`."""
        train, split = (self.over in names for names in (("seed", "both"), ("split", "both")))
        seed = experiment.seed
        seeds = [
            dataclasses.replace(seed, train=seed.train + index * train, split=seed.split + index * split)
            for index in range(self.count)
        ]
        return [dataclasses.replace(experiment, seed=each) for each in seeds]

    def label(self, seed: SeedConfig) -> str:
        """What distinguishes one of the experiments: `seed 3`, `split 3`, `split 3 seed 4`."""
        parts = [("split", seed.split)] * (self.over != "seed") + [("seed", seed.train)] * (
            self.over != "split"
        )
        return " ".join(f"{name} {number}" for name, number in parts)
