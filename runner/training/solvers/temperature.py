"""Temperature scaling (Guo et al., ICML 2017): calibration by one number that divides all logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimizes the mean cross-entropy of the logits (n × classes) with the labels (n).

    The loss is convex in 1 / temperature, which is searched between 1e-4 and 1e4. Labels are smoothed by 1 / (n + 2),
    as Platt (Advances in Large Margin Classifiers, 1999) does: else it would be 0 if all predictions were right.
    """
    logits, smoothing = logits.double(), 1 / (len(labels) + 2)

    def slope(log_factor: float) -> float:
        factor = torch.tensor(math.exp(log_factor), dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy(logits * factor, labels, label_smoothing=smoothing).backward()
        assert factor.grad is not None  # noqa: S101 (for types)
        return float(factor.grad)

    low, high = math.log(1e-4), math.log(1e4)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)
