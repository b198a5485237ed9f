"""Ridge regression for every penalty from one eigendecomposition.

Minimizes Σᵢ wᵢ ‖yᵢ - W xᵢ - b‖² + penalty · ‖W‖² (Hoerl & Kennard 1970), as scikit-learn's `Ridge(alpha=penalty)` does
with sample weights. The intercept b is not penalized. The smaller of X Xᵀ and Xᵀ X is decomposed, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """A linear function of features: n × d → n × outputs."""

    weight: Tensor
    """outputs × d."""
    bias: Tensor
    """outputs."""

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias

    def scaled(self, factor: float) -> Linear:
        """The function times a factor."""
        return Linear(self.weight * factor, self.bias * factor)


def signed_targets(labels: Tensor, classes: int) -> Tensor:
    """1 for the class of an image, -1 for the others: n × classes, float64."""
    targets = torch.full((len(labels), classes), -1.0, dtype=torch.float64)
    targets[torch.arange(len(labels)), labels] = 1.0
    return targets


class RidgePath:
    """The solutions for all penalties.

    Args:
        features: n × d, of any floating-point type.
        targets: n × outputs, float64.
        weights: n sample weights; their mean is taken to be 1.
    """

    def __init__(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        self._share = weights.double() / weights.double().sum()
        self._weights = self._share * len(weights)
        self._targets = targets
        self._features = features.double()
        self._mean, self._target_mean = self._share @ self._features, self._share @ targets
        roots = self._weights.sqrt()[:, None]
        centered = (self._features - self._mean) * roots
        rows, columns = centered.shape
        if rows <= columns:
            values, self._basis = torch.linalg.eigh(centered @ centered.T)
            self._values = values.clamp(min=0)
        else:
            values, vectors = torch.linalg.eigh(centered.T @ centered)
            self._values = values.clamp(min=0)
            # Columns of a singular value of 0 have no direction among the images, and no part in a solution.
            scale = torch.where(values > values[-1] * 1e-14, self._values.rsqrt(), 0.0)
            self._basis = centered @ vectors * scale
        self._directions = centered.T @ self._basis
        """d × r: what a coefficient of each basis vector adds to the weights."""
        self._projected = self._basis.T @ ((targets - self._target_mean) * roots)

    def solution(self, penalty: float) -> Linear:
        """The solution for a penalty > 0."""
        weight = (self._directions @ self._coefficients(penalty)).T
        return Linear(weight, self._target_mean - weight @ self._mean)

    def predictions(self, features: Tensor) -> Callable[[float], Tensor]:
        """The function from a penalty to what its solution predicts for these features (n × outputs, float64)."""
        projected = (features.double() - self._mean) @ self._directions
        return lambda penalty: projected @ self._coefficients(penalty) + self._target_mean

    def leave_one_out(self, penalty: float) -> Tensor:
        """What the solution without an image predicts for that image, for every image: n × outputs.

        From the diagonal of the hat matrix (Golub, Heath & Wahba 1979).
        """
        shrunk = self._values / (self._values + penalty)
        leverage = self._share + self._basis.square() @ shrunk
        fitted = self._basis @ (shrunk[:, None] * self._projected) / self._weights.sqrt()[:, None]
        residuals = self._targets - self._target_mean - fitted
        return self._targets - residuals / (1 - leverage).clamp(min=1e-12)[:, None]

    def _coefficients(self, penalty: float) -> Tensor:
        return self._projected / (self._values + penalty)[:, None]
