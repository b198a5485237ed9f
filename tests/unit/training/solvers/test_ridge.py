"""Ridge regression on all penalties, against scikit-learn."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from runner.training.solvers.ridge import Linear, RidgePath, RidgeProblem, ridge, signed_targets

PENALTIES = (1e-3, 1.0, 100.0)
SHAPES = [(60, 20), (40, 100), (30, 30)]
"""More images than features, fewer, as many."""


def problem(images: int, features: int, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and sample weights of mean 1."""
    generator = torch.Generator().manual_seed(images)
    values = torch.randn(images, features, generator=generator, dtype=torch.float64) + 3
    labels = torch.randint(0, classes, (images,), generator=generator)
    weights = torch.rand(images, generator=generator, dtype=torch.float64) + 0.1
    return values, labels, weights / weights.mean()


def solutions(problem: RidgeProblem) -> list[dict[float, Linear]]:
    """By penalty, from one eigendecomposition and from a Cholesky decomposition each."""
    return [
        {penalty: problem.linear(coefficients) for penalty, coefficients, _ in solved}
        for solved in (RidgePath(problem).solve(PENALTIES), ridge(problem, PENALTIES))
    ]


@pytest.mark.parametrize(("images", "features"), SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_solutions_are_those_of_scikit_learn(images: int, features: int, penalty: float) -> None:
    values, labels, weights = problem(images, features)
    targets = signed_targets(labels, 4)
    expected = Ridge(alpha=penalty).fit(values.numpy(), targets.numpy(), sample_weight=weights.numpy())
    for solved in solutions(RidgeProblem(values, targets, weights)):
        assert np.abs(solved[penalty].weight.numpy() - expected.coef_).max() < 1e-8
        assert np.abs(solved[penalty].bias.numpy() - expected.intercept_).max() < 1e-8


@pytest.mark.parametrize(("images", "features"), SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_leaving_one_out_is_what_training_without_it_gives(
    images: int, features: int, penalty: float
) -> None:
    values, labels, weights = problem(images, features)
    targets = signed_targets(labels, 4)
    ridge_problem = RidgeProblem(values, targets, weights)
    predicted = [
        ridge_problem.leave_one_out(coefficients, forms, penalty)
        for solved in (
            RidgePath(ridge_problem).solve([penalty], quadratic_forms=True),
            ridge(ridge_problem, [penalty], quadratic_forms=True),
        )
        for _, coefficients, forms in solved
        if forms is not None
    ]
    assert len(predicted) == 2
    for index in (0, 7, images - 1):
        others = np.arange(images) != index
        alone = Ridge(alpha=penalty).fit(
            values.numpy()[others], targets.numpy()[others], sample_weight=weights.numpy()[others]
        )
        expected = alone.predict(values.numpy()[[index]])[0]
        for left_out in predicted:
            assert expected == pytest.approx(left_out[index].numpy(), abs=1e-6)


@pytest.mark.parametrize(("images", "features"), SHAPES)
def test_predictions_are_those_of_the_solution(images: int, features: int) -> None:
    values, labels, weights = problem(images, features)
    ridge_problem = RidgeProblem(values, signed_targets(labels, 4), weights)
    new = torch.randn(5, features, dtype=torch.float64)
    inputs = ridge_problem.inputs(new)
    for _, coefficients, _ in RidgePath(ridge_problem).solve(PENALTIES):
        predicted = inputs @ coefficients + ridge_problem.target_mean
        assert torch.allclose(predicted, ridge_problem.linear(coefficients)(new), atol=1e-10)


def test_repeated_features_and_images_do_no_harm() -> None:
    values, labels, weights = problem(40, 10)
    doubled = torch.cat([1e4 * values, 1e4 * values], dim=1)
    for features in (doubled, torch.cat([doubled] * 5, dim=1)):
        ridge_problem = RidgeProblem(features, signed_targets(labels, 4), weights)
        for solve in (RidgePath(ridge_problem).solve, partial(ridge, ridge_problem)):
            solved = ridge_problem.linear(next(solve([1e-6]))[1])
            assert torch.isfinite(solved.weight).all()
            assert torch.allclose(solved.weight[:, :10], solved.weight[:, 10:20], atol=1e-6)
