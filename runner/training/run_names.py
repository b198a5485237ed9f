"""Names and descriptions of runs in MLflow, by what they are."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.data.manifest import Manifest
from runner.utils.text import counted


def run_name(experiment: Experiment) -> str:
    """Network, learning rate (of the last stage) and seed, as `vgg16-pooled lr=3e-4 seed=0`."""
    model, seed, split = experiment.model, experiment.seed, experiment.split
    parts = [model.arch if model.head == "classifier" else f"{model.arch}-{model.head}"]
    if model.trainable != "head":
        parts.append(f"trains={model.trainable}")
    solver = experiment.train.solver
    lr = experiment.stages[-1].lr or experiment.optim.lr
    parts.append(f"lr={_short(lr)}" if solver == "gradient" else solver)
    parts.append(f"seed={seed.train}" + (f" split={seed.split}" if seed.split else ""))
    if split.folds is not None:
        parts.append(f"folds={split.folds}" if split.fold is None else f"fold={split.fold} of {split.folds}")
    return " ".join(parts)


def run_description(experiment: Experiment, manifest: Manifest) -> str:
    """A paragraph on what is trained on which images, in MLflow's Markdown."""
    model, optim, train = experiment.model, experiment.optim, experiment.train
    sizes = ", ".join(f"{count:,} {split}" for split, count in manifest.counts().items())
    heads = {"classifier": "its own classifier", "linear": "a linear head on its features"}
    head = heads.get(model.head, "a new head on its features")
    what = "the head is trained" if model.trainable == "head" else f"trained: {model.trainable}"
    if train.stages:
        rates = (_short(optim.lr if stage.lr is None else stage.lr) for stage in train.stages)
        what = "trained: " + ", then ".join(
            f"{stage.trainable} ({counted(stage.epochs, 'epoch')} at {rate})"
            for stage, rate in zip(train.stages, rates, strict=True)
        )
    views = experiment.augment.views
    how = f"Up to {train.epochs} epochs of {optim.name} at {_short(optim.lr)}, batches of {train.batch_size}"
    if train.solver != "gradient":
        how = f"Solved: {train.solver}" + ", then again with the validation images" * train.refit
    augmented = {"none": "no augmentation", "fresh": "a new augmented view every epoch"}
    return (
        f"**{model.arch}** with {head}, {model.weights or 'random weights'}; {what}."
        f"\n\n**{manifest.root.name}**: {len(manifest.classes):,} classes, {len(manifest.entries):,} images ({sizes})."
        f"\n\n{how}, {augmented.get(str(views), f'{views} augmented views')}."
    )


def _short(value: float) -> str:
    """A number as people write it: 0.01, 3e-4."""
    if value >= 0.001:
        return f"{value:g}"
    digits, _, exponent = f"{value:.6e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
