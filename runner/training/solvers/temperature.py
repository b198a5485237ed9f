"""Calibration by one number: the factor of the logits with the lowest cross-entropy (Guo et al., ICML 2017)."""

from __future__ import annotations

import torch
from torch import Tensor


def best_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor of the logits (n × classes) that minimizes the mean cross-entropy with the labels (n).

    The loss is convex in the factor. It is searched between 1e-4 and 1e4. The labels are smoothed by 1 / (n + 2), as
    Platt (Advances in Large Margin Classifiers, 1999) does: else the factor would be infinite if all predictions were
    right.
    """
    smoothing = 1 / (len(labels) + 2)
    logits = logits.double()

    def slope(log_scale: float) -> float:
        scale = torch.tensor(log_scale, dtype=torch.float64).exp().requires_grad_()
        torch.nn.functional.cross_entropy(logits * scale, labels, label_smoothing=smoothing).backward()
        assert scale.grad is not None  # noqa: S101 (for types)
        return float(scale.grad)

    low, high = torch.tensor([1e-4, 1e4]).double().log().tolist()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(torch.tensor((low + high) / 2).double().exp())
