"""Solves a linear head on features: chooses the penalty, calibrates, and solves again with the validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from runner.config.train_schema import TrainConfig
from runner.evaluation.metrics import METRICS, TASK, Scores, compute_scores
from runner.training.batches import class_weights
from runner.training.solvers.logistic import logistic_path
from runner.training.solvers.products import KeptProducts, pyramid_products
from runner.training.solvers.ridge import Linear, RidgePath, RidgeProblem, ridge, signed_targets
from runner.training.solvers.temperature import fit_temperature

PENALTIES = tuple(float(value) for value in np.logspace(-6, 5, 45))
"""Those of `train.penalty=auto`, as in the linear probes of SimCLR, BYOL and DINOv2."""
CHOLESKY_UP_TO = {"validation": 8, "leave_one_out": 3}
"""Penalties for which a Cholesky decomposition each takes less time than one eigendecomposition, by `penalty_by`."""


@dataclass(frozen=True)
class Rows:
    """Images to solve on or to score: features (n × d) and class indices (n)."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

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
Report: TypeAlias = Callable[[str], None]
"""Called with the name of each part of the work when it begins."""


def count_parts(settings: TrainConfig) -> int:
    """How often `solve` reports a part of its work."""
    path = len(_penalties(settings)) if settings.solver == "logistic" else 3
    return path + 1 + settings.refit


@dataclass
class Solver:
    """Solves a head.

    Args:
        settings: solver, penalty, penalty_by, standardize, refit, class_weights and best count.
        classes: The number of classes.
        levels: Features of each level of a pyramid; None: one level.
        kept: Products of features of earlier solutions; None: there are none to share.
        report: See `Report`.
    """

    settings: TrainConfig
    classes: int
    levels: Sequence[int] | None = None
    kept: KeptProducts | None = None
    report: Report = lambda part: None

    def solve(self, train: Rows, val: Rows) -> Solution:
        """Solve a head on the images of `train`.

        The penalty is chosen by those of `val`, which calibrate it as well, unless that is leaving one out.
        """
        scale = _inverse_deviations(train.features) if self.settings.standardize else None
        together = train + val
        if scale is not None:
            together = replace(together, features=together.features * scale)
        solution = self._solve(together, len(train))
        if scale is not None:
            refitted = solution.refitted and solution.refitted.of_scaled(scale)
            solution = replace(solution, linear=solution.linear.of_scaled(scale), refitted=refitted)
        return solution

    def _solve(self, together: Rows, count: int) -> Solution:
        """Solve on the first `count` images."""
        settings = self.settings
        train = Rows(together.features[:count], together.labels[:count])
        val = Rows(together.features[count:], together.labels[count:])
        held_out = train if settings.penalty_by == "leave_one_out" else val
        inner = self._inner(together, count) if settings.solver == "ridge" else None
        path, best, chosen, metric = [], None, None, METRICS[settings.best]
        for penalty, logits, solution in self._candidates(train, val, inner):
            # A loss is compared as the model will have it: calibrated. That takes time, and no count depends on it.
            temperature = 1.0 if metric.counted else fit_temperature(logits, held_out.labels)
            results = TASK.results(logits / temperature, held_out.labels)
            scores = compute_scores(results, held_out.labels.numpy(), self.classes)
            path.append(PathPoint(penalty, scores))
            quality = metric.sign * scores[metric.name]
            # Of equal ones the larger penalty: they come first.
            if best is None or quality > best:
                best, chosen = quality, (penalty, logits, solution)
        assert chosen is not None  # noqa: S101 (for types: there is a penalty at least)
        penalty, logits, solution = chosen
        self.report("calibration")
        temperature = fit_temperature(logits, held_out.labels)
        linear = solution().with_temperature(temperature)
        refitted = None
        if settings.refit:
            self.report("solution with the validation images")
            refitted = self._solution(together, inner, penalty).with_temperature(temperature)
        path.sort(key=lambda point: point.penalty)
        return Solution(linear, penalty, tuple(path), refitted, linear(train.features))

    def _inner(self, together: Rows, count: int) -> Tensor | None:
        """The products of the images that are needed, in a wide problem."""
        self.report("products of features")
        features = together.features
        if count > features.shape[1]:
            return None
        if self.settings.penalty_by == "leave_one_out" and not self.settings.refit:
            features = features[:count]
        return pyramid_products(features, self.levels or [features.shape[1]], self.kept)

    def _candidates(self, train: Rows, val: Rows, inner: Tensor | None) -> Iterator[Candidate]:
        """The penalties to choose from, the largest first."""
        penalties, count = _penalties(self.settings), len(train)
        if self.settings.solver == "logistic":
            weights = self._weights(train.labels)
            path = logistic_path(train.features, train.labels, self.classes, weights, penalties)
            for number, penalty in enumerate(penalties, 1):
                self.report(f"penalty {number} of {len(penalties)}")
                linear = next(path)[1]
                yield penalty, linear(val.features), partial(_identity, linear)
            return
        problem = self._problem(train, None if inner is None else inner[:count, :count])
        size, leaves_out = len(problem.right_hand_side), self.settings.penalty_by == "leave_one_out"
        if len(penalties) > CHOLESKY_UP_TO[self.settings.penalty_by]:
            self.report(f"eigendecomposition ({size:,} × {size:,})")
            solved = RidgePath(problem).solve(penalties, leaves_out)
        else:
            self.report(f"decompositions ({size:,} × {size:,})")
            solved = ridge(problem, penalties, leaves_out)
        self.report(f"{len(penalties)} penalties")
        inputs = (
            torch.empty(0)  # not needed
            if leaves_out
            else problem.inputs(val.features, None if inner is None else inner[count:, :count])
        )
        for penalty, coefficients, quadratic_forms in solved:
            if quadratic_forms is not None:
                logits = problem.leave_one_out(coefficients, quadratic_forms, penalty)
            else:
                logits = inputs @ coefficients + problem.target_mean
            yield penalty, logits, partial(problem.linear, coefficients)

    def _solution(self, rows: Rows, inner: Tensor | None, penalty: float) -> Linear:
        """The solution for one penalty."""
        if self.settings.solver == "logistic":
            weights = self._weights(rows.labels)
            path = logistic_path(rows.features, rows.labels, self.classes, weights, [penalty])
            return next(path)[1]
        problem = self._problem(rows, inner)
        return problem.linear(next(ridge(problem, [penalty]))[1])

    def _problem(self, rows: Rows, inner: Tensor | None) -> RidgeProblem:
        targets = signed_targets(rows.labels, self.classes)
        return RidgeProblem(rows.features, targets, self._weights(rows.labels), inner)

    def _weights(self, labels: Tensor) -> Tensor:
        """The weight of each image."""
        power = float(self.settings.class_weights)
        return class_weights(labels, self.classes, power)[labels] if power else torch.ones(len(labels))


def _identity(linear: Linear) -> Linear:
    return linear


def _inverse_deviations(features: Tensor) -> Tensor:
    """1 / standard deviation of each feature; 1 where it is constant."""
    deviations = features.double().std(0, correction=0)
    return torch.where(deviations > 1e-6 * deviations.max(), 1 / deviations, 1.0).float()


def _penalties(settings: TrainConfig) -> list[float]:
    """The largest first."""
    given = settings.penalty
    values = PENALTIES if given == "auto" else (given,) if isinstance(given, float | int) else given
    return sorted({float(value) for value in values}, reverse=True)
