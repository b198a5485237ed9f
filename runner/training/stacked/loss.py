"""The loss of stacked heads with its gradient: `metrics.TASK.loss`, with a label smoothing for each head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def loss_and_gradient(
    logits: Tensor, target: Tensor, class_weights: Tensor, smoothing: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The weighted mean cross-entropy of each head (heads), and its gradient by the logits (heads × n × classes).

    Each step rounds as torch's `cross_entropy` does: a head then takes the same steps here and alone.

    Args:
        logits: heads × n × classes.
        target: n class indices.
        class_weights: Of the classes.
        smoothing: Label smoothing of each head.
    """
    heads, images, classes = logits.shape
    weights = class_weights[target]
    total = weights.sum().item()
    hard = torch.tensor([1 - each for each in smoothing])
    soft = torch.tensor([each / classes for each in smoothing])
    unit = torch.ones(()) / total
    index = target.expand(heads, images)[:, :, None]
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        logs = leaf.log_softmax(2)
    values = logs.detach()
    summed = -(values.gather(2, index)[:, :, 0] * weights).sum(1) * hard
    if any(smoothing):
        summed += -(values * class_weights).sum(2).sum(1) * soft
        gradient = (-(unit * soft)[:, None, None] * class_weights).repeat(1, images, 1)
    else:
        gradient = torch.zeros_like(values)
    gradient.scatter_add_(2, index, (-weights * (unit * hard)[:, None])[:, :, None])
    return summed / total, torch.autograd.grad(logs, leaf, gradient)[0]
