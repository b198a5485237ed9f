"""Is a difference more than chance? Means of pairs with their confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Mean difference of pairs, its standard deviation, and the confidence interval of the mean."""

    mean: float
    sd: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired(ones: Sequence[float], others: Sequence[float]) -> Paired:
    """Differences `one - other` of pairs, with Student's interval: mean ± t(n-1) · sd / √n.

    See W. S. Gosset ("Student"), The probable error of a mean, Biometrika 1908. One pair has no interval.
    """
    from scipy.stats import t

    differences = [one - other for one, other in zip(ones, others, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Paired(mean, 0.0, -math.inf, math.inf)
    sd = statistics.stdev(differences)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * sd / math.sqrt(len(differences))
    return Paired(mean, sd, mean - half, mean + half)
