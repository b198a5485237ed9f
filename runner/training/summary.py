"""What training prints at its start and at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.config.schema import Experiment
from runner.data.manifest import Manifest
from runner.evaluation.metrics import Scores
from runner.features.cache import FeatureCache, MissingFeatures
from runner.tracking.tracker import Tracker
from runner.training.devices import describe_device
from runner.training.results import RunResult
from runner.training.setup import Setup
from runner.training.spread import Results
from runner.utils.console import Terminal, format_bytes
from runner.utils.paths import cache_folder
from runner.utils.text import joined, printable

SUMMARIZED = {
    "test/best": "test, best checkpoint",
    "test/last": "test, last checkpoint",
    "val/best": "validation, best",
}
"""Scores of several runs that are summarized, and what people call them."""
RANDOM_WEIGHTS = (
    "the backbone had random weights: the run shows that everything works, not what the model can do"
)


def print_start(setup: Setup, missing: MissingFeatures, terminal: Terminal) -> None:
    """Print data, model, features and device before a run starts; `missing` are the features to compute."""
    experiment, manifest, model = setup.experiment, setup.manifest, setup.model
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trainable
    constants = model.spec.normalization
    terminal.key_values(
        experiment.name,
        [
            ("data", describe_data(manifest)),
            ("split", describe_split(setup)),
            ("views", describe_views(experiment)),
            ("model", describe_model(experiment)),
            *([("backbone", model.note)] if model.note else []),
            ("parameters", f"{trainable:,} trainable, {frozen:,} frozen"),
            *([("stages", describe_stages(setup))] if experiment.train.stages else []),
            (
                "weights",
                experiment.model.weights or "RANDOM: the backbone is not pretrained, so scores mean little",
            ),
            ("normalize", f"mean {_numbers(constants.mean)}, sd {_numbers(constants.std)}"),
            ("cached features", _cached_features(setup)),
            ("to compute", _missing(setup, missing)),
            ("device", f"{describe_device(setup.accelerator)}, precision {experiment.train.precision}"),
        ],
    )
    if missing.images and (size := setup.loader.lacks_shared_memory(missing.images, setup.batch_size)):
        terminal.warn(
            f"batches of images go through slower pipes: shared memory needs {format_bytes(size)} in /dev/shm (docker"
            " run --shm-size, or a smaller data.workers) and a TMPDIR of fewer than 75 characters"
        )


def print_result(result: RunResult, terminal: Terminal) -> None:
    """Print the scores of a finished run."""
    best, last = result.best_epoch, result.history[-1]
    rows = [
        ("validation, best", best.number, best.val),
        ("test, best checkpoint", best.number, result.best),
        ("test, last checkpoint", last.number, result.last),
    ]
    cells = [(what, str(epoch), f"{scores.images:,}", *_values(scores)) for what, epoch, scores in rows]
    terminal.table("Result", ("", "epoch", "images", *(metric.label for metric in best.val.shown)), cells)


def print_spread(results: Results, over: str, terminal: Terminal) -> None:
    """Print mean and standard deviation of the scores of several runs; `over` says what differs between them."""
    metrics = results.runs[0].best.shown
    figures = {(scores, metric): figure for scores, metric, figure in results.figures()}
    rows = []
    for name, what in SUMMARIZED.items():
        if (name, metrics[0].name) not in figures:
            continue
        spreads = [results.spread(figures[name, metric.name]) for metric in metrics]
        rows.append((what, *(f"{each.mean:.4f} ± {each.sd:.4f}" for each in spreads)))
        deviations = [each.sd_repeats for each in spreads if each.sd_repeats is not None]
        if deviations:
            rows.append((f"  sd over the {results.repeats}", *(f"{sd:.4f}" for sd in deviations)))
    terminal.table(f"Mean ± sd of {over}", ("", *(metric.label for metric in metrics)), rows)
    if results.explanation:
        terminal.line(results.explanation)


def print_cross_validation(
    experiment: Experiment, parent: Tracker, child: Tracker, terminal: Terminal
) -> None:
    """Print where a finished cross-validation is, and what to do with it; `child` is one of its runs."""
    if experiment.model.weights is None:
        terminal.warn(RANDOM_WEIGHTS)
    label = f"Run {parent.run_id} ({experiment.name}, {parent.name})"
    if parent.deleted:
        return
    if not parent.delivered:
        terminal.line(f"{label} has finished; ./launch.sh sync sends its records to MLflow.")
        return
    terminal.line(f"{label} is in MLflow: {parent.link or './launch.sh ui shows it'},")
    terminal.line(
        f"with its out-of-fold predictions as predictions.csv; ./launch.sh evaluate {child.run_id[:8]} writes a report"
        " on a fold. For a model to use, train without --split.folds."
    )


def print_run(experiment: Experiment, tracker: Tracker, terminal: Terminal) -> None:
    """Print where a finished run is, and what to do with it."""
    if experiment.model.weights is None:
        terminal.warn(RANDOM_WEIGHTS)
    label, run = f"Run {tracker.run_id} ({experiment.name}, {tracker.name})", tracker.run_id[:8]
    if tracker.deleted:
        return
    if not tracker.delivered:
        terminal.line(f"{label} has finished; ./launch.sh sync sends its records to MLflow.")
        return
    place = tracker.link or "./launch.sh ui shows it"
    terminal.line(f"{label} is in MLflow: {place},")
    terminal.line(
        f"./launch.sh evaluate {run} writes a report, ./launch.sh predict IMAGE --model {run} uses it."
    )
    if experiment.name == "quickstart" and experiment.model.weights is None:
        terminal.line(
            "Next, the same digits on real weights: ./launch.sh train --config quickstart-pretrained"
        )


def _values(scores: Scores) -> list[str]:
    return [f"{scores[metric.name]:.4f}" for metric in scores.shown]


def describe_data(manifest: Manifest) -> str:
    """Where the images are, how many, and in which layout."""
    numbers = f"{len(manifest.entries):,} images of {len(manifest.classes):,} classes"
    layout = f" ({printable(manifest.layout)})" if manifest.layout else ""
    return f"{manifest.root}: {numbers}{layout}"


def describe_split(setup: Setup) -> str:
    """Images of each split, the seed, and images that are in none."""
    manifest = setup.manifest
    sizes = ", ".join(f"{count:,} {name}" for name, count in manifest.counts().items())
    others = [
        (len(manifest.rejected), "unreadable left out"),
        (manifest.unused, "unused"),
        (manifest.duplicates, "exact duplicates"),
    ]
    rest = [f"{count:,} {what}" for count, what in others if count]
    return "; ".join([f"{sizes} (seed {setup.experiment.seed.split})", *rest])


def describe_model(experiment: Experiment) -> str:
    """Backbone, layers whose maps are pooled, if the settings name them, and head."""
    settings = experiment.model
    pools = f" that pools {joined(settings.pooled_layers)}" if settings.pooled_layers else ""
    return f"{settings.arch}, {settings.head} head{pools}"


def describe_views(experiment: Experiment) -> str:
    """Augmentation, sizes of the images that the model receives, and test-time augmentation."""
    augment = experiment.augment
    sizes = f"{joined([str(size) for size in augment.scales or (augment.input_size,)])} px"
    if len(augment.scales) > 1:
        sizes += " averaged" if "scales" in augment.tta else " stacked"
    if "flips" in augment.tta:
        sizes += ", averaged with mirror images"
    if augment.views == "none":
        return f"not augmented, {'whole images, ' * (augment.crop_mode == 'squash')}{sizes}"
    count = "a new one every epoch" if augment.views == "fresh" else f"{augment.views} in turn"
    return f"augmented, {count}, {sizes} (seed {experiment.seed.augment})"


def describe_stages(setup: Setup) -> str:
    """Epochs, layers, learning rate and parameters of each stage of training."""
    experiment, model, parts = setup.experiment, setup.model, []
    for number, stage in enumerate(experiment.stages):
        model.unfreeze(stage.trainable)
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        first = experiment.first_epoch(number) + 1
        epochs = f"{first}-{first + stage.epochs - 1}" if stage.epochs > 1 else str(first)
        rate = experiment.optim.lr if stage.lr is None else stage.lr
        parts.append(f"epochs {epochs}: {stage.trainable} at {rate:g} ({count:,} parameters)")
    return "; ".join(parts)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _cached_features(setup: Setup) -> str:
    parts = []
    for layer, features in _stored_layers(setup).items():
        shape, dtype = features.feature_shape()
        values = math.prod(shape)
        parts.append(
            f"{layer}, {values:,} values per image and view ({format_bytes(values * dtype.itemsize)})"
        )
    return f"output of {'; then of '.join(parts)}" if parts else "none: all layers train"


def _stored_layers(setup: Setup) -> dict[str, FeatureCache]:
    """The last layers of what is frozen in the stages of training, with their outputs."""
    return {
        features.extractor.layer_name(len(features.extractor.stages) - 1): features
        for features in setup.stage_features
        if features.extractor.stages
    }


def _missing(setup: Setup, missing: MissingFeatures) -> str:
    if not _stored_layers(setup):
        return "no features"
    if not setup.experiment.features.store:
        return "all features, every time (features.store is off)"
    if not missing.features:
        return "nothing: all features are stored"
    compiled = ", compiled" * setup.features.extractor.compiled
    return (
        f"at most {missing.images:,} images and views through the backbone{compiled};"
        f" {format_bytes(missing.bytes)} to store in {cache_folder(setup.experiment.cache)}"
    )
