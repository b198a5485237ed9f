"""Multinomial logistic regression for several penalties by L-BFGS.

Minimizes Σᵢ wᵢ · cross-entropyᵢ + penalty / 2 · ‖W‖², as scikit-learn's `LogisticRegression(C=1 / penalty)` does with
sample weights. The intercept is not penalized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner.training.solvers.ridge import Linear, symmetric_eigen

MAX_STEPS = 1000
TOLERANCE = 1e-6
"""Largest entry of the gradient of the mean loss at the end."""


def logistic_path(
    features: Tensor, labels: Tensor, classes: int, weights: Tensor, penalties: Sequence[float]
) -> Iterator[tuple[float, Linear]]:
    """The solution for each penalty, the largest first: each starts from the one before.

    Args:
        features: n × d.
        labels: n class indices.
        classes: The number of classes.
        weights: n sample weights.
        penalties: Each > 0.
    """
    features = features.double()
    mean = features.mean(0)
    rotated, basis = _rotated(features - mean)
    weight = torch.zeros(classes, rotated.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    weights = weights.double()
    for penalty in sorted(penalties, reverse=True):
        _minimize(rotated, labels, weights, penalty, (weight, bias))
        full = weight.detach().clone() if basis is None else weight.detach() @ basis
        yield penalty, Linear(full, bias.detach() - full @ mean)


def _rotated(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features in an orthonormal basis of the space that they span (r × d), if they are fewer than their dimensions.

    The solutions lie in that space, and the penalty is the same there.
    """
    rows, columns = features.shape
    if rows >= columns:
        return features, None
    values, vectors = symmetric_eigen(features @ features.T)
    kept = values > values[-1] * 1e-12
    singular, vectors = values[kept].sqrt(), vectors[:, kept]
    return vectors * singular, (vectors / singular).T @ features


def _minimize(
    features: Tensor, labels: Tensor, weights: Tensor, penalty: float, parameters: tuple[Tensor, Tensor]
) -> None:
    weight, bias = parameters
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
        value = ((losses * weights).sum() + penalty / 2 * weight.square().sum()) / len(labels)
        value.backward()
        return value

    optimizer.step(loss)
