"""What a run says of itself: an overview at the start, a line an epoch."""

from __future__ import annotations

import math
from collections import Counter

from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.data.manifest import SPLITS
from runner.features.cache import MissingFeatures
from runner.training import devices
from runner.training.loop import EpochResult
from runner.training.setup import Setup
from runner.utils.console import Terminal, format_bytes, format_duration


def print_start(ready: Setup, demand: MissingFeatures, accelerator: Accelerator, terminal: Terminal) -> None:
    """The overview before a run begins: data, network, cut, device."""
    experiment, manifest, network = ready.experiment, ready.manifest, ready.network
    counts = Counter(entry.split for entry in manifest.entries)
    split = ", ".join(f"{counts[name]:,} {name}" for name in SPLITS)
    rest = [
        f"{count:,} {what}"
        for count, what in (
            (len(manifest.rejected), "unreadable left out"),
            (manifest.unused, "unused"),
            (manifest.duplicates, "exact duplicates"),
        )
        if count
    ]
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in network.parameters()) - trained
    normalization = network.spec.normalization
    terminal.key_values(
        f"{experiment.name}",
        [
            ("data", f"{manifest.root}: {len(manifest.entries):,} images of {len(manifest.classes)} classes"),
            ("split", "; ".join([f"{split} (seed {experiment.seed.split})", *rest])),
            ("views", _views_words(experiment)),
            ("network", f"{experiment.model.arch}, {experiment.model.head} head"),
            ("parameters", f"{trained:,} train, {frozen:,} are frozen"),
            (
                "weights",
                experiment.model.weights
                or "RANDOM: the convolutions were never trained, so scores mean little",
            ),
            ("normalise", " ".join(f"{value:.4f}" for value in (*normalization.mean, *normalization.std))),
            ("cut", _cut_words(ready)),
            ("features", _demand_words(ready, demand)),
            ("device", f"{devices.describe(accelerator)}, precision {experiment.train.precision}"),
        ],
    )


def _views_words(experiment: Experiment) -> str:
    augment = experiment.augment
    if augment.views == "none":
        return f"clean, {augment.crop} px"
    count = "a fresh one every epoch" if augment.views == "fresh" else f"{augment.views} in turn"
    return f"augmented, {count}, {augment.crop} px (seed {experiment.seed.augment})"


def _cut_words(ready: Setup) -> str:
    if not ready.network.split_index:
        return "none: everything trains"
    shape, dtype = ready.features.feature_shape()
    row = format_bytes(math.prod(shape) * dtype.itemsize)
    return f"behind {ready.network.split_layer}: {math.prod(shape):,} numbers, {row} an image and view"


def _demand_words(ready: Setup, demand: MissingFeatures) -> str:
    if not ready.network.split_index:
        return "none to keep"
    if not ready.features.stored:
        return "computed every time (features.store is off)"
    if not demand.features:
        return "all kept already"
    compiled = ", compiled" * ready.features.extractor.compiled
    return (
        f"at most {demand.images:,} images and views through the convolutions{compiled}; {format_bytes(demand.bytes)} to keep"
        f" in {ready.experiment.cache}"
    )


def epoch_line(epoch: EpochResult) -> str:
    """An epoch in one line."""
    marks = ("  best" if epoch.best else "") + ("  lr reduced" if epoch.reduced else "")
    return (
        f"epoch {epoch.number:3}  train loss {epoch.train_loss:.4f} top-1 {epoch.train_top1:.4f}"
        f"  val loss {epoch.val['loss']:.4f} top-1 {epoch.val['top1']:.4f} top-5 {epoch.val['top5']:.4f}"
        f"  lr {epoch.lr:.2g}  {format_duration(epoch.seconds) if epoch.seconds >= 60 else f'{epoch.seconds:.1f} s'}{marks}"
    )
