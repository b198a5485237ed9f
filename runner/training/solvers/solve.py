"""Solves a linear head on features: chooses the penalty, calibrates, and solves again with the validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import psutil
import torch
from torch import Tensor

from runner.config.schema import TrainConfig
from runner.evaluation.metrics import METRICS, TASK, Scores, compute_scores
from runner.training.batches import class_weights
from runner.training.solvers.logistic import logistic_path
from runner.training.solvers.ridge import Linear, RidgePath, ridge, signed_targets
from runner.training.solvers.temperature import fit_temperature
from runner.utils.console import format_bytes
from runner.utils.errors import UserError

PENALTIES = tuple(float(value) for value in np.logspace(-6, 5, 45))
"""Those of `train.penalty=auto`, as in the linear probes of SimCLR, BYOL and DINOv2."""
COPIES = 3
"""Matrices of features in float64 that a solution needs at a time."""


@dataclass(frozen=True)
class Rows:
    """Images to solve on or to score: features (n × d) and class indices (n)."""

    features: Tensor
    labels: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.features, other.features]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True)
class PathPoint:
    """A penalty, and the scores of its solution on the images that it is chosen by."""

    penalty: float
    scores: Scores


@dataclass(frozen=True)
class Solution:
    """A solved head."""

    linear: Linear
    """Calibrated, of the training images alone."""
    penalty: float
    path: tuple[PathPoint, ...]
    """By penalty, the smallest first."""
    refitted: Linear | None
    """Of the training and validation images, with the same penalty and temperature; None unless `train.refit`."""
    train: Tensor
    """Logits of the training images."""


Candidate: TypeAlias = tuple[float, Tensor, Callable[[], Linear]]
"""A penalty, the held-out logits that it is chosen by, and its solution."""


def check_memory(images: int, features: int) -> None:
    """Raise `UserError` if solving for so many images and features per image does not fit into memory."""
    smaller = min(images, features)
    needed = 8 * (COPIES * images * features + 3 * smaller**2)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"Solving a linear head for {images:,} images with {features:,} features each needs"
            f" {format_bytes(needed)} of memory, and {format_bytes(free)} are free; pool less (model.pool), take fewer"
            " images, or train it by steps (train.solver=gradient)."
        )


def solve(settings: TrainConfig, train: Rows, val: Rows, classes: int) -> Solution:
    """Solve a head.

    Args:
        settings: solver, penalty, penalty_by, refit, class_weights and best count.
        train: What it is solved on.
        val: What the penalty is chosen by, and the calibration, unless that is leaving one out.
        classes: The number of classes.
    """
    candidates = _candidates(settings, train, val, classes)
    held_out = train if settings.penalty_by == "leave_one_out" else val
    path, best, chosen = [], None, None
    for penalty, logits, solution in candidates:
        scores = compute_scores(TASK.results(logits, held_out.labels), held_out.labels.numpy(), classes)
        path.append(PathPoint(penalty, scores))
        quality = METRICS[settings.best].sign * scores[settings.best]
        # Of equal ones the larger penalty: they come first.
        if best is None or quality > best:
            best, chosen = quality, (penalty, logits, solution)
    assert chosen is not None  # noqa: S101 (for types: there is a penalty at least)
    penalty, logits, solution = chosen
    temperature = fit_temperature(logits, held_out.labels)
    linear = solution().with_temperature(temperature)
    refitted = None
    if settings.refit:
        single = _solutions(settings, train + val, classes, [penalty])
        refitted = next(single)[1].with_temperature(temperature)
    path.sort(key=lambda point: point.penalty)
    return Solution(linear, penalty, tuple(path), refitted, linear(train.features.double()))


def _candidates(settings: TrainConfig, train: Rows, val: Rows, classes: int) -> Iterator[Candidate]:
    """The penalties to choose from, the largest first."""
    penalties = _penalties(settings)
    if settings.solver == "logistic":
        for penalty, linear in _solutions(settings, train, classes, penalties):
            yield penalty, linear(val.features.double()), partial(_identity, linear)
        return
    targets, weights = signed_targets(train.labels, classes), _sample_weights(settings, train.labels, classes)
    path = RidgePath(train.features, targets, weights)
    by_left_out = settings.penalty_by == "leave_one_out"
    predictions = path.leave_one_out if by_left_out else path.predictions(val.features)
    for penalty in penalties:
        yield penalty, predictions(penalty), partial(path.solution, penalty)


def _identity(linear: Linear) -> Linear:
    return linear


def _solutions(
    settings: TrainConfig, rows: Rows, classes: int, penalties: Sequence[float]
) -> Iterator[tuple[float, Linear]]:
    if settings.solver == "logistic":
        weights = _sample_weights(settings, rows.labels, classes)
        yield from logistic_path(rows.features, rows.labels, classes, weights, penalties)
        return
    targets, weights = signed_targets(rows.labels, classes), _sample_weights(settings, rows.labels, classes)
    for penalty in penalties:
        yield penalty, ridge(rows.features, targets, weights, penalty)


def _sample_weights(settings: TrainConfig, labels: Tensor, classes: int) -> Tensor:
    power = float(settings.class_weights)
    return class_weights(labels, classes, power)[labels] if power else torch.ones(len(labels))


def _penalties(settings: TrainConfig) -> list[float]:
    """The largest first."""
    given = settings.penalty
    values = PENALTIES if given == "auto" else (given,) if isinstance(given, float | int) else given
    return sorted({float(value) for value in values}, reverse=True)
