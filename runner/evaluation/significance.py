"""Two runs on the same images: which run was correct where the other was not, and whether the difference is chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from runner.evaluation.predictions import PredictionRow

ALPHA = 0.05
"""Significance level. Intervals have the confidence level 1 - ALPHA."""
MOST_CLASSES = 10
"""Maximum number of classes in a result."""


@dataclass(frozen=True)
class ClassDifference:
    """Images of a class that only one of two runs classified correctly."""

    name: str
    only_first: int
    only_second: int


@dataclass(frozen=True)
class McNemarResult:
    """McNemar's test of a second run against a first, on the images of both."""

    images: int
    left_out: int
    """Images that only one of the runs has predictions for."""
    only_first: int
    """Images that only the first run classified correctly."""
    only_second: int
    """Images that only the second run classified correctly."""
    classes: tuple[ClassDifference, ...]
    """Classes with the largest net differences, largest first."""

    @property
    def difference(self) -> float:
        """Top-1 accuracy of the second run minus that of the first (-1 to 1)."""
        return (self.only_second - self.only_first) / self.images

    @property
    def p(self) -> float:
        """Two-sided p-value of the exact test."""
        return exact_p(self.only_first, self.only_second)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the difference; None if the pairs do not define one."""
        return wald_interval(self.only_first, self.only_second, self.images)


def mcnemar(first: Sequence[PredictionRow], second: Sequence[PredictionRow]) -> McNemarResult | None:
    """Compare the predictions of two runs on the images of both; None if they have no image in common.

    An image is the same if its path, content and class are.
    """
    ours, theirs = ({(row.path, row.digest, row.true): row for row in rows} for rows in (first, second))
    common = [(row, theirs[key]) for key, row in ours.items() if key in theirs]
    if not common:
        return None
    only_first = Counter(row.true for row, other in common if row.correct and not other.correct)
    only_second = Counter(row.true for row, other in common if other.correct and not row.correct)
    return McNemarResult(
        images=len(common),
        left_out=len(ours) + len(theirs) - 2 * len(common),
        only_first=only_first.total(),
        only_second=only_second.total(),
        classes=tuple(_largest_differences(only_first, only_second)),
    )


def _largest_differences(only_first: Counter[str], only_second: Counter[str]) -> list[ClassDifference]:
    names = {*only_first, *only_second}
    classes = [ClassDifference(name, only_first[name], only_second[name]) for name in names]
    unequal = [row for row in classes if row.only_first != row.only_second]
    return sorted(unequal, key=lambda row: (-abs(row.only_second - row.only_first), row.name))[:MOST_CLASSES]


def exact_p(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: for equally good models each discordant image is a fair coin toss.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 1947, with the binomial distribution instead of its χ² approximation.

    Args:
        only_first: Images that only the first model classified correctly.
        only_second: Images that only the second model classified correctly.
    """
    if only_first == only_second:  # also without discordant images
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def wald_interval(only_first: int, only_second: int, images: int) -> tuple[float, float] | None:
    """95 % Wald interval of the difference of paired proportions d = p₂₁ - p₁₂, second minus first.

    The variance of d is [(p₁₂ + p₂₁) - (p₁₂ - p₂₁)²] / n: A. Agresti, Categorical Data Analysis, 3rd edition (2013),
    §11.1.1. The approximation needs about ten discordant images. None if the variance is zero.
    """
    lost, won = only_first / images, only_second / images
    variance = ((lost + won) - (lost - won) ** 2) / images
    if only_first + only_second == 0 or variance <= 0:
        return None
    half = NormalDist().inv_cdf(1 - ALPHA / 2) * math.sqrt(variance)
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests, in the same order.

    Of k values the i-th smallest is multiplied by k - i + 1, and none becomes smaller than the one before: S. Holm, A
    simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
