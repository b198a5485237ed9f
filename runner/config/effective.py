"""Which settings decided a result: those that runs in MLflow show as parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runner.config.choices import OPTIMIZERS, SCHEDULES
from runner.config.metadata import changes_results
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten
from runner.utils.registry import Registry

OF_VIEWS = (
    "scale",
    "ratio",
    "flip",
    "rotation",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "policy",
    "erasing",
)
"""Settings of the group augment that only augmented views use."""

OF_SOLVERS = ("penalty", "penalty_by", "standardize", "refit")
"""Settings of the group train that only solvers use."""
OF_STEPS = (
    "epochs",
    "batch_size",
    "accumulate",
    "clip",
    "label_smoothing",
    "sampling",
    "nonfinite",
    "patience",
    "average",
    "stages",
    "mixup",
    "cutmix",
    "monitor",
)
"""Settings of the group train that only optimizer steps use."""


def decisive_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide a result, by dotted name.

    Left out are the experiment's name, settings that change no result, and those without effect beside the others: the
    augmentation of plain views, the size of a head that the model has not, the options of another optimizer.
    """
    settings = flatten(as_tree(experiment))
    idle = {"name", *_idle(experiment, settings)}
    return {name: value for name, value in settings.items() if changes_results(name) and name not in idle}


def note_on_idle_settings(experiment: Experiment, given: Iterable[str]) -> str:
    """A sentence on settings that were given and have no effect; empty if there are none."""
    given = dict.fromkeys(given)
    idle = _idle(experiment, given)
    names = [name for name in given if name in idle]
    if not names:
        return ""
    reason = ""
    if experiment.augment.views == "none" and any(name.startswith("augment.") for name in names):
        reason = " (augment.views is none: images are not augmented)"
    return f"without effect beside the other settings: {', '.join(names)}{reason}"


def _idle(experiment: Experiment, names: Iterable[str]) -> set[str]:
    """Settings without effect beside the others. Of the groups optim and schedule, those that are among `names`."""
    idle = {*_options_of_others("optim", OPTIMIZERS, experiment.optim.name)}
    idle |= _options_of_others("schedule", SCHEDULES, experiment.schedule.kind)
    if experiment.augment.views == "none":
        idle |= {f"augment.{name}" for name in (*OF_VIEWS, "rotation_interpolation")} | {"seed.augment"}
    if experiment.augment.policy != "randaugment" or experiment.augment.views == "none":
        idle |= {"augment.operations", "augment.magnitude"}
    head, solver = experiment.model.head, experiment.train.solver
    if experiment.train.average != "ema":
        idle.add("train.ema_decay")
    if experiment.train.average != "swa":
        idle.add("train.swa_start")
    if not experiment.train.patience:
        idle.add("train.monitor")
    if experiment.model.trainable == "head":
        idle.add("optim.layer_decay")
    if experiment.model.drop_path is None:
        idle.add("model.drop_path")
    stages = experiment.train.stages
    if not stages:
        idle.add("train.stages")
    elif all(stage.lr is not None for stage in stages):
        idle.add("optim.lr")
    if head == "classifier":
        idle |= {"model.pool", "model.pooled_layers"}
    if head == "linear":
        idle |= {"model.width", "model.dropout"}
    else:
        idle |= {"model.power", "model.norm"}
    if solver == "gradient":
        idle |= {f"train.{name}" for name in OF_SOLVERS}
    else:
        idle |= {f"train.{name}" for name in OF_STEPS} | {"seed.train"}
        idle |= {name for name in names if name.startswith(("optim.", "schedule."))}
    return idle


def _options_of_others(group: str, registry: Registry[Any], chosen: str) -> set[str]:
    """The settings of a group that belong to its other choices."""
    uses = {name: set(choice.uses) for name, choice in registry.choices.items()}
    return {f"{group}.{option}" for option in set().union(*uses.values()) - uses[chosen]}
