"""Temperature scaling (Guo et al., ICML 2017): calibration by one number that divides all logits."""

from __future__ import annotations

import math

import scipy.optimize
from torch import Tensor


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimizes the mean cross-entropy of the logits (n × classes) with the labels (n).

    The loss is convex in 1 / temperature, which is searched between 1e-4 and 1e4. Labels are smoothed by 1 / (n + 2),
    as Platt (Advances in Large Margin Classifiers, 1999) does: else it would be 0 if all predictions were right.
    """
    logits, smoothing = logits.double(), 1 / (len(labels) + 2)
    of_labels = (1 - smoothing) * logits.gather(1, labels[:, None])[:, 0] + smoothing * logits.mean(1)

    def slope(log_factor: float) -> float:
        probabilities = (logits * math.exp(log_factor)).softmax(1)
        return float(((probabilities * logits).sum(1) - of_labels).mean())

    low, high = math.log(1e-4), math.log(1e4)
    if slope(low) >= 0 or slope(high) <= 0:  # the loss is least at one end
        return math.exp(-low if slope(low) >= 0 else -high)
    return math.exp(-scipy.optimize.brentq(slope, low, high, xtol=1e-12))
