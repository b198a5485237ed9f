"""Which trainings can be stacked: trained together in one pass over their features."""

from __future__ import annotations

from runner.config.effective import decisive_settings
from runner.config.schema import Experiment
from runner.utils.hashing import digest

MAY_DIFFER = {
    "optim.lr",
    "optim.weight_decay",
    "model.dropout",
    "model.width",
    "train.label_smoothing",
    "seed.train",
}
"""Settings in which stacked heads may differ."""
OPTIMIZERS = ("adam", "adamw", "sgd")
"""Those that treat each value by itself."""
SCHEDULES = ("reduce_on_drop", "cosine", "onecycle", "constant")


def stack_key(experiment: Experiment) -> str | None:
    """What must be the same for experiments to be stacked; None: this one trains alone."""
    model, optim, train = experiment.model, experiment.optim, experiment.train
    stackable = (
        model.trainable == "head"
        and model.head in ("pooled", "classifier")
        and train.solver == "gradient"
        and not train.stages
        and train.accumulate == 1
        and train.nonfinite == "stop"
        and train.average == "none"
        and not (train.mixup or train.cutmix)
        and not optim.groups
        and optim.decay_norm
        and optim.name in OPTIMIZERS
        and experiment.schedule.kind in SCHEDULES
    )
    if not stackable:
        return None
    settings = decisive_settings(experiment)
    return digest({name: value for name, value in settings.items() if name not in MAY_DIFFER})
