"""`--dry-run`: estimate what a run would compute, store and take, without running it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.transforms import EVALUATION_VIEW
from runner.features.cache import NOTHING, FeatureCache, MissingFeatures
from runner.models.dropout import set_dropout_batch
from runner.models.pretrained import missing_download, named_normalization
from runner.tracking.mlflow_server import tracking_server
from runner.training.setup import Setup, prepare
from runner.training.summary import describe_data, describe_model, describe_stages
from runner.utils.atomic_files import free_bytes
from runner.utils.console import Terminal, format_bytes, format_duration
from runner.utils.paths import cache_folder


def print_estimate(
    experiment: Experiment, repeat: Repeat, accelerator: Accelerator, terminal: Terminal
) -> None:
    """Print images, features, time and disk space of a run.

    Nothing is trained, stored, logged or downloaded. Time is extrapolated from one batch through the frozen backbone
    and one training step, which are measured here.

    Args:
        experiment: The run; of a cross-validation its first fold.
        repeat: How often it is trained.
        accelerator: Device and processes. Every process calls this function.
        terminal: Prints.

    Raises `UserError` as `prepare`.
    """
    weights = experiment.model.weights or "RANDOM"
    if (download := missing_download(experiment.model)) is not None:
        terminal.warn(
            f"a run would download {download}; this dry run does not, and counts all features as still to compute"
        )
        experiment = _with_random_weights(experiment)
    setup = prepare(experiment, accelerator, terminal, may_measure=False)
    _print(setup, repeat, weights, terminal)


def _with_random_weights(experiment: Experiment) -> Experiment:
    """The experiment without its weights, but with the normalization that they expect."""
    model = experiment.model
    normalize = named_normalization(model) if model.normalize == "weights" else model.normalize
    return dataclasses.replace(
        experiment, model=dataclasses.replace(model, weights=None, normalize=normalize)
    )


def _print(setup: Setup, repeat: Repeat, weights: str, terminal: Terminal) -> None:
    experiment, manifest = setup.experiment, setup.manifest
    missing = _missing(setup)
    missing_images, missing_bytes = sum(each.images for each in missing), sum(each.bytes for each in missing)
    counts, trainings = manifest.counts(), len(repeat.experiments(experiment))
    each = f", with {trainings} training seed{'s' * (trainings > 1)}"
    is_solved = experiment.train.solver != "gradient"
    epochs = "none: the head is solved" if is_solved else f"at most {experiment.train.max_epochs}"
    if experiment.split.is_cross_validation:
        each = f" in each of {trainings} trainings: {repeat.describe(experiment)}"
    rows = [
        ("data", describe_data(manifest)),
        ("model", describe_model(experiment)),
        ("weights", weights),
        (
            "images",
            ", ".join(f"{count:,} {split}" for split, count in counts.items())
            + " (fold 0)" * experiment.split.is_cross_validation,
        ),
        ("epochs", f"{epochs}{each}"),
        *([("stages", describe_stages(setup))] if experiment.train.stages else []),
    ]
    if any(features.stored for features in setup.stage_features):
        cache = cache_folder(experiment.cache)
        train_views = len(
            {view for _, wanted in setup.required_features for split, view in wanted if split == "train"}
        )
        size = format_bytes(missing_bytes)
        rows += [
            ("views", f"{train_views} of each training image, 1 of the others"),
            (
                "features",
                f"{missing_images:,} images and views to compute; {size} to store in {cache / 'features'}",
            ),
        ]
    if experiment.features.compile == "auto":
        rows.append(("compiling", "a run tries first whether it saves time; the time below is without"))
    rows += [
        ("time", _time(setup, trainings, missing)),
        ("disk", _disk(setup, trainings)),
        ("device", f"{setup.accelerator.device}, precision {experiment.train.precision}"),
    ]
    terminal.key_values(f"{experiment.name}: nothing was run", rows)


def _missing(setup: Setup) -> list[MissingFeatures]:
    """What is to compute of each of the required features; of a cross-validation for all folds."""
    experiment, entries = setup.experiment, setup.manifest.entries
    if not experiment.split.is_cross_validation:
        return [features.missing(wanted) for features, wanted in setup.required_features]

    def of(features: FeatureCache, split: str, chosen: np.ndarray, views: Sequence[int]) -> MissingFeatures:
        splits = np.where(chosen, SPLITS.index(split), NO_SPLIT).astype(np.int8)
        manifest = dataclasses.replace(setup.manifest, entries=dataclasses.replace(entries, splits=splits))
        return features.of(manifest).missing([(split, view) for view in views])

    # Each image is in the fold once, and trained on in the other folds, but for those of a fixed test split.
    all_images, missing = np.ones(len(entries), bool), []
    divisions = (experiment.split.folds or 1) if experiment.model.normalize == "statistics" else 1
    is_trained = entries.splits != SPLITS.index("test") if setup.manifest.fold == "val" else all_images
    for features, wanted in setup.required_features:
        views = [view for _, view in wanted if view != EVALUATION_VIEW]
        every = of(features, "val", all_images, [EVALUATION_VIEW]) + of(features, "train", is_trained, views)
        missing.append(sum([every] * divisions, start=NOTHING))
    return missing


def _time(setup: Setup, seeds: int, missing: Sequence[MissingFeatures]) -> str:
    """Estimated time of all epochs, and the part of it that the frozen backbone takes."""
    experiment, images = setup.experiment, setup.manifest.counts()
    steps = seeds * math.ceil(images["train"] / experiment.train.batch_size)
    step_seconds = sum(
        stage.epochs * steps * _step_seconds(setup, number) for number, stage in enumerate(experiment.stages)
    )
    if not any(features.extractor.stages for features in setup.stage_features):
        return f"about {format_duration(step_seconds)}, without validation: all layers train"
    if experiment.features.store:
        work = [
            (features, each.images)
            for (features, _), each in zip(setup.required_features, missing, strict=True)
        ]
    else:
        each_epoch = images["train"] + images["val"]
        pairs = zip(setup.stage_features, experiment.stages, strict=True)
        work = [(features, seeds * stage.epochs * each_epoch) for features, stage in pairs]
        work.append((setup.features, seeds * images["test"]))
    rates: dict[int, float] = {}
    backbone = 0.0
    for features, count in work:
        if features.extractor.stages and count:
            if id(features) not in rates:
                rates[id(features)] = _backbone_rate(setup, features) * setup.accelerator.num_processes
            backbone += count / rates[id(features)]
    passes = sum(count for features, count in work if features.extractor.stages)
    speed = f" at {passes / backbone:,.1f} images/s" if backbone else ""
    return (
        f"about {format_duration(backbone + step_seconds)}, of which {format_duration(backbone)} for the frozen"
        f" backbone{speed}"
    )


def _disk(setup: Setup, seeds: int) -> str:
    """Bytes of weights (best, last, logged model, and the frozen ones, which local files share), and free space."""
    trainable, frozen = (
        sum(value.nbytes for value in state.values())
        for state in (setup.model.trainable_state(), setup.model.frozen_state())
    )
    models = 1 if setup.experiment.tracking.model and setup.experiment.split.folds is None else 0
    copies = 1 if tracking_server(setup.experiment.tracking.root).embedded else seeds * (1 + models)
    checkpoints = format_bytes(seeds * (2 + models) * trainable + copies * frozen)
    free = format_bytes(free_bytes(cache_folder(setup.experiment.cache)))
    return f"{checkpoints} of checkpoints; {free} free"


def _backbone_rate(setup: Setup, features: FeatureCache) -> float:
    """Images/s of one process through a frozen backbone."""
    crop = setup.experiment.augment.input_size
    images = torch.zeros(setup.batch_size, 3, crop, crop, dtype=torch.uint8)
    return setup.batch_size / _seconds(lambda: features.extractor(images).sum().item())


def _step_seconds(setup: Setup, stage: int) -> float:
    """Seconds of a forward and backward pass of what trains in a stage, on this process's share of a batch."""
    model, accelerator = setup.model, setup.accelerator
    model.unfreeze(setup.experiment.stages[stage].trainable)
    count = max(1, setup.experiment.train.batch_size // accelerator.num_processes)
    shape, dtype = setup.stage_features[stage].feature_shape()
    features = torch.zeros(count, *shape, dtype=dtype, device=accelerator.device)

    def step() -> None:
        set_dropout_batch(model.modules(), 0, slice(0, count), count)
        with accelerator.autocast():
            loss = model(features, start=model.split_index).sum()
        loss.backward()
        loss.item()
        model.zero_grad()

    model.train()
    return _seconds(step)


def _seconds(work: Callable[[], object]) -> float:
    """Time of the second call; the first one warms up."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
