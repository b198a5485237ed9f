"""What a study is about: its baseline, its space, its objective, and how it is searched."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.schema import Experiment, as_tree, flatten
from runner.study.space import Space
from runner.utils.errors import UserError

IRRELEVANT = (
    "cache",
    "tracking",
    "features.memory",
    "features.cap",
    "features.store",
    "data.workers",
    "data.root",
)
"""Settings that may differ between the workers of one study: no score hangs on them."""


@dataclass(frozen=True)
class Plan:
    """What a study is about, and how it is searched."""

    name: str
    baseline: Experiment
    space: Space
    storage: str
    objective: str = "top1"
    fits: int = 1
    """Fit seeds that a trial's value is the mean of."""
    trials: int = 50
    """In total, over all workers and times."""
    sampler: str = "tpe"
    pruner: str = "auto"
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What must be the same for all who share the study."""
        settings = flatten(as_tree(self.baseline))
        kept = {name: value for name, value in settings.items() if not name.startswith(IRRELEVANT)}
        if kept.get("model.weights"):
            kept["model.weights"] = Path(str(kept["model.weights"])).name
        return {
            "objective": self.objective,
            "fits": self.fits,
            "space": self.space.as_plain(),
            "baseline": kept,
        }


NEEDS = {"cmaes": ("cmaes", "cma"), "gp": ("scipy", "")}
"""Samplers that want a package, and the extra that holds it."""


def check_sampler(name: str) -> None:
    """Raises `UserError` where the package that a sampler needs is not installed."""
    package, extra = NEEDS.get(name, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        wanted = f"'vgg-runner[{extra}]'" if extra else package
        raise UserError(
            f"The sampler {name} needs the package {package}: pip install {wanted}, or choose another one."
        )
