"""Names and descriptions of runs in MLflow, by what they are."""

from __future__ import annotations

from runner.config.schema import Experiment
from runner.data.manifest import Manifest


def run_name(experiment: Experiment) -> str:
    """Network, learning rate and seed, as `vgg16-pooled lr=3e-4 seed=0`."""
    model, seed, split = experiment.model, experiment.seed, experiment.split
    parts = [f"{model.arch}-{model.head}" if model.head == "pooled" else model.arch]
    if model.trainable != "head":
        parts.append(f"trains={model.trainable}")
    parts.append(f"lr={_short(experiment.optim.lr)}")
    parts.append(f"seed={seed.train}" + (f" split={seed.split}" if seed.split else ""))
    if split.folds is not None:
        parts.append(f"folds={split.folds}" if split.fold is None else f"fold={split.fold} of {split.folds}")
    return " ".join(parts)


def run_description(experiment: Experiment, manifest: Manifest) -> str:
    """A paragraph on what is trained on which images, in MLflow's Markdown."""
    model, optim, train = experiment.model, experiment.optim, experiment.train
    sizes = ", ".join(f"{count:,} {split}" for split, count in manifest.counts().items())
    head = "a new head on the pooled convolutions" if model.head == "pooled" else "its own classifier"
    what = "the head is trained" if model.trainable == "head" else f"trained: {model.trainable}"
    views = experiment.augment.views
    augmented = {"none": "no augmentation", "fresh": "a new augmented view every epoch"}
    return (
        f"**{model.arch}** with {head}, {model.weights or 'random weights'}; {what}."
        f"\n\n**{manifest.root.name}**: {len(manifest.classes):,} classes, {len(manifest.entries):,} images ({sizes})."
        f"\n\nUp to {train.epochs} epochs of {optim.name} at {_short(optim.lr)}, batches of {train.batch_size},"
        f" {augmented.get(str(views), f'{views} augmented views')}."
    )


def _short(value: float) -> str:
    """A number as people write it: 0.01, 3e-4."""
    if value >= 0.001:
        return f"{value:g}"
    digits, _, exponent = f"{value:.6e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
