"""Ridge regression for one penalty, by a Cholesky decomposition, or for many, by one eigendecomposition.

Minimizes Σᵢ wᵢ ‖yᵢ - W xᵢ - b‖² + penalty · ‖W‖² (Hoerl & Kennard 1970), as scikit-learn's `Ridge(alpha=penalty)` does
with sample weights. The intercept b is not penalized. The smaller of X Xᵀ and Xᵀ X is decomposed, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import scipy.linalg
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from runner.training.solvers.products import products

PENALTIES_AT_A_TIME = 9
"""Penalties whose solutions are computed at a time: faster than one by one, and all would take much memory."""
EPSILON = 1e-14
"""Part of a matrix that is lost to rounding."""
CHUNK = 2048
"""Rows that are converted to float64 at a time."""


@dataclass(frozen=True)
class Linear:
    """A linear function of features: n × d → n × outputs."""

    weight: Tensor
    """outputs × d."""
    bias: Tensor
    """outputs."""

    def __call__(self, features: Tensor) -> Tensor:
        parts = [chunk.double() @ self.weight.T for chunk in features.split(CHUNK)]
        return torch.cat(parts) + self.bias

    def of_scaled(self, scale: Tensor) -> Linear:
        """The same function, of features that are not yet multiplied by a scale (d)."""
        return Linear(self.weight * scale, self.bias)

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

    By SciPy: on CPUs torch's takes half as long again. Threads of SciPy that share a core would wait for each other.
    """
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        values, vectors = scipy.linalg.eigh(
            matrix.numpy(), driver="evd", overwrite_a=True, check_finite=False
        )
    return torch.from_numpy(values), torch.from_numpy(vectors)


class RidgeProblem:
    """What is to be solved, centered: rows and targets are multiplied by the root of their weight.

    With at most as many images as features (`is_wide`), a solution is a combination of the images; k is then the number
    of images, else that of features.

    Args:
        features: n × d, of any floating-point type.
        targets: n × outputs, float64.
        weights: n sample weights; their mean is taken to be 1.
        inner: Products of the features, n × n, float64; None: computed if they are needed.
    """

    def __init__(
        self, features: Tensor, targets: Tensor, weights: Tensor, inner: Tensor | None = None
    ) -> None:
        self.features, self.targets = features, targets
        self.normalized_weights = weights.double() / weights.double().sum()
        self.sqrt_weights = (self.normalized_weights * len(self.normalized_weights)).sqrt()[:, None]
        self.mean = sum(
            (part @ chunk.double() for part, chunk in self._chunks(self.normalized_weights)),
            torch.zeros(1).double(),
        )
        self.target_mean = self.normalized_weights @ targets
        centered_targets = (targets - self.target_mean) * self.sqrt_weights
        self.is_wide = features.shape[0] <= features.shape[1]
        if self.is_wide:
            self.inner = products(features) if inner is None else inner
            self.inner_mean = self.inner @ self.normalized_weights
            self.right_hand_side = centered_targets
        else:
            self.rows = (features.double() - self.mean).mul_(self.sqrt_weights)
            self.right_hand_side = self.rows.T @ centered_targets

    @cached_property
    def null_shift(self) -> float:
        """Eigenvalue that the null vector of a wide problem's centered matrix is given, instead of 0."""
        return float(self.inner.diagonal().mean())

    def gram(self) -> Tensor:
        """The matrix to decompose, k × k, a new tensor: products of the centered images, or of the features."""
        if not self.is_wide:
            return self.rows.T @ self.rows
        # Centering as one product, since each pass over the matrix takes time: R (K - m 1ᵀ - 1 mᵀ) R + null_shift u uᵀ,
        # with R the square roots of the weights, m the mean products and u the null vector.
        means = self.sqrt_weights * (self.inner_mean - self.normalized_weights @ self.inner_mean / 2)[:, None]
        null_vector = self.normalized_weights.sqrt()[:, None]
        left = torch.cat([-means, self.sqrt_weights, self.null_shift * null_vector], dim=1)
        right = torch.cat([self.sqrt_weights, -means, null_vector], dim=1)
        return (self.inner * self.sqrt_weights).mul_(self.sqrt_weights.T).addmm_(left, right.T)

    def linear(self, coefficients: Tensor) -> Linear:
        """The function with these coefficients (k × outputs), and the intercept that fits it."""
        weight = coefficients.T
        if self.is_wide:
            parts = (
                part.T @ chunk.double() for part, chunk in self._chunks(self.sqrt_weights * coefficients)
            )
            weight = sum(parts, torch.zeros(1).double())
        return Linear(weight, self.target_mean - weight @ self.mean)

    def inputs(self, features: Tensor, inner: Tensor | None = None) -> Tensor:
        """What a solution's coefficients are multiplied with to predict other images: m × k.

        Args:
            features: m × d.
            inner: Their products with the problem's features, m × n, float64; None: computed if they are needed.
        """
        if not self.is_wide:
            return features.double() - self.mean
        inner = features.double() @ self.features.double().T if inner is None else inner
        centered = inner - self.inner_mean
        centered -= (centered @ self.normalized_weights)[:, None]
        return centered.mul_(self.sqrt_weights.T)

    def leave_one_out(self, coefficients: Tensor, quadratic_forms: Tensor, penalty: float) -> Tensor:
        """What the solution without an image predicts for that image, for every image: n × outputs.

        From the diagonal of the hat matrix (Golub, Heath & Wahba 1979).

        Args:
            coefficients: k × outputs.
            quadratic_forms: See `RidgePath`.
            penalty: Of the solution.
        """
        if self.is_wide:  # residuals and 1 - leverage, both divided by the penalty
            residuals = coefficients
            remainder = quadratic_forms - self.normalized_weights / (self.null_shift + penalty)
        else:
            fitted = self.rows @ coefficients
            residuals = (self.targets - self.target_mean) * self.sqrt_weights - fitted
            remainder = (1 - self.normalized_weights - quadratic_forms).clamp(min=1e-12)
        return self.targets - residuals / self.sqrt_weights / remainder[:, None]

    def _chunks(self, per_image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(per_image.split(CHUNK), self.features.split(CHUNK), strict=True)


Solved = tuple[float, Tensor, Tensor | None]
"""A penalty; the solution's coefficients, k × outputs; its quadratic forms (n), if they are wanted."""


class RidgePath:
    """Solutions for several penalties from one eigendecomposition.

    The quadratic forms of a solution are rᵀ (M + penalty)⁻¹ r for each image. M is the matrix that is decomposed, and r
    the image's row, or its unit vector if the problem is wide. They are the leverage of the images, or follow from it.
    """

    def __init__(self, problem: RidgeProblem) -> None:
        self._problem = problem
        values, self._vectors = symmetric_eigen(problem.gram())
        # Features span no direction of eigenvalue 0: errors of rounding there must not count.
        negligible = values[-1] * EPSILON if not problem.is_wide else 0
        self._values = torch.where(values > negligible, values, 0 if problem.is_wide else torch.inf)
        self._projected = self._vectors.T @ problem.right_hand_side

    def solve(self, penalties: Sequence[float], quadratic_forms: bool = False) -> Iterator[Solved]:
        """The solutions, in this order; with their quadratic forms if these are wanted."""
        for start in range(0, len(penalties), PENALTIES_AT_A_TIME):
            some = penalties[start : start + PENALTIES_AT_A_TIME]
            inverse = 1 / (self._values[:, None] + torch.tensor(some, dtype=torch.float64))
            scaled = self._projected[:, None] * inverse[:, :, None]
            solved = (self._vectors @ scaled.flatten(1)).view(scaled.shape)
            forms = self._squares @ inverse if quadratic_forms else None
            for index, penalty in enumerate(some):
                yield penalty, solved[:, index], None if forms is None else forms[:, index]

    @cached_property
    def _squares(self) -> Tensor:
        problem = self._problem
        return (self._vectors if problem.is_wide else problem.rows @ self._vectors).square()


def ridge(
    problem: RidgeProblem, penalties: Sequence[float], quadratic_forms: bool = False
) -> Iterator[Solved]:
    """The solutions for penalties > 0, in this order, by a Cholesky decomposition each."""
    gram = problem.gram()
    negligible = EPSILON * float(gram.diagonal().sum())
    for number, penalty in enumerate(penalties, start=1):
        shifted = gram.clone() if number < len(penalties) else gram
        shifted.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed or penalty < negligible:
            yield from RidgePath(problem).solve([penalty], quadratic_forms)
            continue
        forms = None
        if quadratic_forms:
            rows = torch.eye(len(factor), dtype=torch.float64) if problem.is_wide else problem.rows.T
            forms = torch.linalg.solve_triangular(factor, rows, upper=False).square_().sum(0)
        yield penalty, torch.cholesky_solve(problem.right_hand_side, factor), forms
