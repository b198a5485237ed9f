"""Heads on synthetic rows of Caltech-101's size, trained one by one and together."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator

from runner.config.parser import parse
from runner.config.schema import Experiment, Normalization
from runner.config.tree import override
from runner.features.sources import InMemorySource
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit
from runner.training.results import EpochResult
from runner.training.stacked.fit import fit_stacked
from runner.training.stacked.trainer import StackedHead

TRAINING_IMAGES, VALIDATION_IMAGES, CLASSES = 4286, 2185, 101
"""Of Caltech-101 in the split 50/25/25."""
CHANNELS = 512
"""Of the last convolution of VGG."""


def synthetic_data(pool: int, device: torch.device) -> FitData:
    """Rows as VGG's pooled features, on a device: not negative, in bfloat16, around a center for each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (TRAINING_IMAGES + VALIDATION_IMAGES,), generator=generator)
    size = CHANNELS * pool**2
    centers = torch.randn(CLASSES, size, generator=generator)
    rows = (centers[labels] + 3 * torch.randn(len(labels), size, generator=generator)).relu().bfloat16()
    rows = rows.to(device)

    def split(start: int, stop: int) -> LabeledFeatures:
        source = InMemorySource(rows, np.arange(start, stop), device)
        return LabeledFeatures(lambda _: source, labels[start:stop].numpy())

    return FitData(split(0, TRAINING_IMAGES), split(TRAINING_IMAGES, len(rows)), 32)


def experiments(count: int, pool: int, epochs: int) -> list[Experiment]:
    """Settings of heads of 256 units that differ in rate, decay, dropout and smoothing."""
    words = ["--config", "caltech101-pooled", "--data.root", "none", "--model.pool", str(pool)]
    base, _ = parse([*words, "--train.epochs", str(epochs), "--train.precision", "no"])
    draw = random.Random(0)  # noqa: S311 (not for cryptography)
    return [
        override(
            base,
            {
                "optim.lr": 10 ** draw.uniform(-4.5, -2.5),
                "optim.weight_decay": draw.choice([0.0, 0.001, 0.1, 0.3]),
                "model.dropout": draw.uniform(0, 0.8),
                "train.label_smoothing": draw.uniform(0, 0.2),
            },
        )
        for _ in range(count)
    ]


def new_model(experiment: Experiment) -> TransferModel:
    """A model with new head; the values of its backbone are not used, and undefined."""
    settings = experiment.model
    classes = tuple(map(str, range(CLASSES)))
    spec = ModelSpec(
        arch="vgg11",
        head=settings.head,
        pool=settings.pool,
        width=settings.width,
        dropout=settings.dropout,
        trainable="head",
        classes=classes,
        normalization=Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    )
    return TransferModel(spec, experiment.seed.train, random_weights=False)


Histories = list[list[EpochResult]]


def train_one_by_one(heads: Sequence[Experiment], data: FitData, accelerator: Accelerator) -> Histories:
    """The epochs of each head."""
    return [fit(head, new_model(head), data, accelerator) for head in heads]


def train_together(heads: Sequence[Experiment], data: FitData, accelerator: Accelerator) -> Histories:
    """The epochs of each head. Raises the error of a head that failed."""
    errors: list[Exception | None] = []
    stacked = [StackedHead(head, new_model(head), lambda *_: None, errors.append) for head in heads]
    fit_stacked(stacked, data, accelerator)
    for error in errors:
        if error is not None:
            raise error
    return [head.history for head in stacked]


def largest_difference(one: Histories, other: Histories) -> float:
    """The largest relative difference of a training or validation loss."""
    pairs = [pair for histories in zip(one, other, strict=True) for pair in zip(*histories, strict=True)]
    return max(
        abs(a / b - 1)
        for first, second in pairs
        for a, b in ((first.train_loss, second.train_loss), (first.val["loss"], second.val["loss"]))
    )
