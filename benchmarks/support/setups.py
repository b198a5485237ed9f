"""Prepared experiments whose images, cache folder and training a benchmark chooses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.data.images import Images
from runner.data.manifest import Manifest
from runner.features.cache import FeatureCache
from runner.models.transfer_model import TransferModel
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit
from runner.training.results import EpochResult
from runner.training.setup import Setup, prepare
from runner.utils.console import Terminal
from runner.utils.errors import UserError

QUIET = Terminal(enabled=False)


def prepare_quietly(experiment: Experiment, accelerator: Accelerator) -> Setup:
    """An experiment's images, model and features, prepared without output."""
    return prepare(experiment, accelerator, QUIET)


def spread(entries: Images, count: int) -> Images:
    """At most `count` entries, spread evenly over the classes."""
    step = max(1, len(entries) // count)
    return entries[::step][:count]


def with_images(features: FeatureCache, entries: Images) -> FeatureCache:
    """The same features, of these images only."""
    return dataclasses.replace(features, manifest=Manifest(features.manifest.files, entries))


def with_cache_folder(features: FeatureCache, folder: Path) -> FeatureCache:
    """The same features, stored under another folder. Raises `UserError` if features are not stored."""
    if features.storage is None:
        raise UserError("This benchmark measures stored features; set features.store=true.")
    return dataclasses.replace(features, storage=dataclasses.replace(features.storage, root=folder))


def train_quietly(
    setup: Setup, experiment: Experiment, model: TransferModel, train: LabeledFeatures, val: LabeledFeatures
) -> list[EpochResult]:
    """Train a model on features without output or records; the results of its epochs.

    Args:
        setup: Gives the device and the inference batch.
        experiment: Its settings of training, optimizer and schedule count.
        model: On the device; its frozen weights are final.
        train: Features and labels to train on.
        val: Features and labels to validate each epoch on.
    """
    return fit(experiment, model, FitData(train, val, setup.batch_size), setup.accelerator)
