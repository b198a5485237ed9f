"""Mean differences of pairs with their confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of pairs, its standard deviation, and the confidence interval of the mean."""

    mean: float
    sd: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Differences `first - second` of pairs, with Student's interval: mean ± t(n-1) · sd / √n.

    See W. S. Gosset ("Student"), The probable error of a mean, Biometrika 1908. A single pair has an infinite
    interval.
    """
    from scipy.stats import t

    differences = [one - other for one, other in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return PairedDifference(mean, 0.0, -math.inf, math.inf)
    sd = statistics.stdev(differences)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * sd / math.sqrt(len(differences))
    return PairedDifference(mean, sd, mean - half, mean + half)
