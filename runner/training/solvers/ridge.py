"""Ridge regression for every penalty from one eigendecomposition.

Minimizes Σᵢ wᵢ ‖yᵢ - W xᵢ - b‖² + penalty · ‖W‖² (Hoerl & Kennard 1970), as scikit-learn's `Ridge(alpha=penalty)` does
with sample weights. The intercept b is not penalized. The smaller of X Xᵀ and Xᵀ X is decomposed, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import scipy.linalg
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

    def with_temperature(self, temperature: float) -> Linear:
        """The function divided by a temperature."""
        return Linear(self.weight / temperature, self.bias / temperature)


def signed_targets(labels: Tensor, classes: int) -> Tensor:
    """1 for the class of an image, -1 for the others: n × classes, float64."""
    targets = torch.full((len(labels), classes), -1.0, dtype=torch.float64)
    targets[torch.arange(len(labels)), labels] = 1.0
    return targets


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the smallest first, and eigenvectors of a symmetric matrix, which is overwritten.

    By SciPy: on CPUs torch's takes half as long again.
    """
    values, vectors = scipy.linalg.eigh(matrix.numpy(), driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


@dataclass(frozen=True)
class _Problem:
    """A weighted regression after centering: rows and targets are multiplied by the root of their weight."""

    rows: Tensor
    """n × d."""
    targets: Tensor
    """n × outputs."""
    mean: Tensor
    """Weighted mean of the features: d."""
    target_mean: Tensor
    share: Tensor
    """Each image's share of the weights: n."""

    @classmethod
    def of(cls, features: Tensor, targets: Tensor, weights: Tensor) -> _Problem:
        share = weights.double() / weights.double().sum()
        features = features.double()
        mean, target_mean = share @ features, share @ targets
        roots = (share * len(share)).sqrt()[:, None]
        return cls((features - mean).mul_(roots), (targets - target_mean) * roots, mean, target_mean, share)

    @property
    def is_wide(self) -> bool:
        """Whether there are at most as many images as features."""
        return self.rows.shape[0] <= self.rows.shape[1]

    def linear(self, weight: Tensor) -> Linear:
        """The function with these weights (outputs × d) and the intercept that fits them."""
        return Linear(weight, self.target_mean - weight @ self.mean)


def ridge(features: Tensor, targets: Tensor, weights: Tensor, penalty: float) -> Linear:
    """The solution for one penalty > 0, by a Cholesky decomposition. Arguments are those of `RidgePath`."""
    problem = _Problem.of(features, targets, weights)
    rows = problem.rows
    square = rows @ rows.T if problem.is_wide else rows.T @ rows
    square.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(square)
    if problem.is_wide:
        return problem.linear(torch.cholesky_solve(problem.targets, factor).T @ rows)
    return problem.linear(torch.cholesky_solve(rows.T @ problem.targets, factor).T)


class RidgePath:
    """The solutions for all penalties.

    Args:
        features: n × d, of any floating-point type.
        targets: n × outputs, float64.
        weights: n sample weights; their mean is taken to be 1.
    """

    def __init__(self, features: Tensor, targets: Tensor, weights: Tensor) -> None:
        self._problem = problem = _Problem.of(features, targets, weights)
        self._targets = targets
        rows = problem.rows
        if problem.is_wide:
            values, self._basis = symmetric_eigen(rows @ rows.T)
            self._directions = None
        else:
            values, vectors = symmetric_eigen(rows.T @ rows)
            # A singular value of 0 has no direction among the images, and no part in a solution.
            inverse = torch.where(values > values[-1] * 1e-14, values.clamp(min=0).rsqrt(), 0.0)
            self._basis = rows @ (vectors * inverse)
            self._directions = vectors * values.clamp(min=0).sqrt()
        self._values = values.clamp(min=0)
        self._projected = self._basis.T @ problem.targets

    def solution(self, penalty: float) -> Linear:
        """The solution for a penalty > 0."""
        coefficients = self._coefficients(penalty)
        if self._directions is None:
            return self._problem.linear((self._basis @ coefficients).T @ self._problem.rows)
        return self._problem.linear((self._directions @ coefficients).T)

    def predictions(self, features: Tensor) -> Callable[[float], Tensor]:
        """The function from a penalty to what its solution predicts for these features (n × outputs, float64)."""
        centered = features.double() - self._problem.mean
        if self._directions is None:
            projected = centered @ self._problem.rows.T @ self._basis
        else:
            projected = centered @ self._directions
        return lambda penalty: projected @ self._coefficients(penalty) + self._problem.target_mean

    def leave_one_out(self, penalty: float) -> Tensor:
        """What the solution without an image predicts for that image, for every image: n × outputs.

        From the diagonal of the hat matrix (Golub, Heath & Wahba 1979).
        """
        shrunk = self._values / (self._values + penalty)
        leverage = self._problem.share + self._squares @ shrunk
        roots = (self._problem.share * len(self._targets)).sqrt()[:, None]
        fitted = self._basis @ (shrunk[:, None] * self._projected) / roots
        residuals = self._targets - self._problem.target_mean - fitted
        return self._targets - residuals / (1 - leverage).clamp(min=1e-12)[:, None]

    @cached_property
    def _squares(self) -> Tensor:
        return self._basis.square()

    def _coefficients(self, penalty: float) -> Tensor:
        return self._projected / (self._values + penalty)[:, None]
