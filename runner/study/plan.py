"""The plan of a study: its baseline, its search space, its objective, and how it is searched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from runner.config.identity import WEIGHTS, Identity, describe_changes, weights_digest
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten, override
from runner.evaluation.metrics import METRICS, Metric
from runner.study.space import Space


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
    folds: int | None = None
    """Folds that the training and validation images of a trial are divided into; its value is their mean, too."""
    trials: int = 50
    """Total number of trials, over all workers and commands."""
    sampler: str = "tpe"
    pruner: str = "auto"
    sampler_seed: int = 0
    manifest: str = ""
    """Digest of the images and their split; empty before they were scanned."""
    weights: str = ""
    """Digest of the baseline's pretrained weights; empty if it has no file."""
    searched_weights: tuple[str, ...] = ()
    """Digests of the choices of a searched `model.weights`, in their order; empty ones for those that are no file."""
    classes: int = 0
    """Classes of the images; 0: not known."""

    @property
    def metric(self) -> Metric:
        """The objective's entry in the table of metrics."""
        return METRICS[self.objective]

    @property
    def searched_space(self) -> Space:
        """The space, with conditions on searched settings only."""
        return self.space.within(flatten(as_tree(self.baseline)))

    @property
    def trainings(self) -> int:
        """Trainings of a trial."""
        return self.seeds * (self.folds or 1)

    def validated(self, experiment: Experiment) -> Experiment:
        """A trial's experiment with the folds that it is validated on. The test split stays what it is without them."""
        # A trial's score comes from the head that is solved without the validation images.
        values: dict[str, Any] = {"train.refit": False}
        if self.folds is not None:
            values |= {"split.folds": self.folds, "split.fold_as": "val"}
        return override(experiment, values)

    def training(self, experiment: Experiment, index: int) -> Experiment:
        """The experiment of one of a trial's trainings: all folds with a seed, then with the next one."""
        repeat, fold = divmod(index, self.folds or 1)
        values: dict[str, Any] = {"seed.train": experiment.seed.train + repeat}
        if self.folds is not None:
            values["split.fold"] = fold
        return override(self.validated(experiment), values)

    def training_name(self, index: int) -> str:
        """What distinguishes one of a trial's trainings: `seed 2 of 3`, `fold 2 of 5`, `training 7 of 10`."""
        what = "training" if self.folds and self.seeds > 1 else "fold" if self.folds else "seed"
        return f"{what} {index + 1} of {self.trainings}"

    def identity(self) -> dict[str, Any]:
        """What must be the same for all workers and commands that share the study, as JSON-like values."""
        return {
            "objective": self.objective,
            "seeds": self.seeds,
            **({"folds": self.folds} if self.folds else {}),  # plans of earlier versions have no such entry
            "space": self.space.as_plain(),
            "baseline": dict(Identity.of(as_tree(self.baseline)).settings),
            "manifest": self.manifest,
            "weights": self.weights,
            "searched_weights": list(self.searched_weights),
        }

    def on_images(self, manifest: str, classes: int = 0) -> Plan:
        """The plan with its images' digest and number of classes, and the digests of the weights as they are now."""
        choices = next((each.choices for each in self.space.dimensions if each.setting == WEIGHTS), ())
        return replace(
            self,
            manifest=manifest,
            weights=weights_digest(self.baseline.model.weights),
            searched_weights=tuple(weights_digest(str(choice)) if choice else "" for choice in choices),
            classes=classes,
        )


def describe_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """How two identities of plans differ, a clause for each: `seeds was 1 and is 3 now`."""
    then, now = (
        Identity(plan.get("baseline", {}), plan.get("manifest", ""), plan.get("weights", ""))
        for plan in (stored, wanted)
    )
    names = ("objective", "seeds", "folds", "space")
    how = [{name: plan[name] for name in names if name in plan} for plan in (stored, wanted)]
    clauses = [*describe_changes(*how), *then.changes(now)]
    searched, searched_now = (plan.get("searched_weights") for plan in (stored, wanted))
    if (
        searched and searched_now and searched != searched_now
    ):  # digests: to show them would tell nobody anything
        clauses.append("a file of the searched model.weights has changed")
    return clauses
