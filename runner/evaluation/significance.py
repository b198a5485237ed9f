"""Two runs judged on the same images: which got right what the other missed, and whether that is luck."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

LEVEL = 0.05
"""A difference is certain where luck would give one as large in at most this share of cases."""
CLASSES = 10
"""Classes that are named."""


class Judged(Protocol):
    """What is read of a prediction; rank 0 is right."""

    @property
    def path(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def true(self) -> str: ...
    @property
    def rank(self) -> int: ...


@dataclass(frozen=True)
class ClassCount:
    """Images of a class that one run alone got right."""

    label: str
    first: int
    second: int


@dataclass(frozen=True)
class Paired:
    """The second run against the first on the images of both."""

    images: int
    left_out: int
    """Images that only one of the runs was judged on."""
    first: int
    """Images that the first run alone got right."""
    second: int
    """Images that the second run alone got right."""
    classes: tuple[ClassCount, ...]
    """Where most was won or lost, the largest net difference first."""

    @property
    def difference(self) -> float:
        """Top-1 of the second run less that of the first, on the common images (-1 to 1)."""
        return (self.second - self.first) / self.images

    @property
    def p(self) -> float:
        """Of McNemar's exact test."""
        return exact_p(self.first, self.second)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the difference; None where the pairs tell nothing of its spread."""
        return wald(self.first, self.second, self.images)


def paired(ones: Sequence[Judged], others: Sequence[Judged]) -> Paired | None:
    """Compare two runs' predictions on the images that both were judged on; None where there are no such images.

    An image is the same where path, content and class are.
    """
    mine, theirs = ({(each.path, each.digest, each.true): each for each in side} for side in (ones, others))
    common = [(one, theirs[key]) for key, one in mine.items() if key in theirs]
    if not common:
        return None
    first = Counter(one.true for one, other in common if one.rank == 0 != other.rank)
    second = Counter(one.true for one, other in common if one.rank != 0 == other.rank)
    return Paired(
        images=len(common),
        left_out=len(mine) + len(theirs) - 2 * len(common),
        first=first.total(),
        second=second.total(),
        classes=tuple(_most(first, second)),
    )


def _most(first: Counter[str], second: Counter[str]) -> list[ClassCount]:
    counts = [ClassCount(label, first[label], second[label]) for label in {*first, *second}]
    unequal = [each for each in counts if each.first != each.second]
    return sorted(unequal, key=lambda each: (-abs(each.second - each.first), each.label))[:CLASSES]


def exact_p(first: int, second: int) -> float:
    """Two-sided p of McNemar's test, exact: were both equally good, each discordant image would be a fair coin.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 1947; the binomial in place of its approximation by χ².

    Args:
        first: Images that the first alone got right.
        second: Images that the second alone got right.
    """
    if first == second:  # without discordant images too
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(first, first + second, 0.5).pvalue)


def wald(first: int, second: int, images: int) -> tuple[float, float] | None:
    """95 % Wald interval of the difference of paired proportions d = p₂₁ - p₁₂, second less first.

    The variance of d is [(p₁₂ + p₂₁) - (p₁₂ - p₂₁)²] / n: A. Agresti, Categorical Data Analysis, 3rd edition (2013),
    §11.1.1. It is an approximation that wants some ten discordant images; None where the variance comes out as zero.
    """
    lost, won = first / images, second / images
    variance = ((lost + won) - (lost - won) ** 2) / images
    if first + second == 0 or variance <= 0:
        return None
    half = NormalDist().inv_cdf(1 - LEVEL / 2) * math.sqrt(variance)
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order: of k, the i-th smallest times k - i + 1, never falling.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    corrected = [0.0] * len(values)
    least = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        least = max(least, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = least
    return corrected
