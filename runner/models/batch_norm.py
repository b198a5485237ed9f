"""Batch normalization over the images of all processes, so that any number of them trains the same model.

Unlike torch's `SyncBatchNorm` it also works on CPUs and for every subclass of batch normalization, as timm's with an
activation, and a process may have no image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PARAMETERS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
"""Of torch.nn.functional.batch_norm, in their order."""


class SynchronizedBatchNorm(TorchFunctionMode):
    """Within the block, batch normalization that trains takes mean and variance of the images of all processes.

    All processes run the same layers in the same order. Gradients go through the statistics, to all processes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace torch's batch normalization."""
        if func is functional.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each contributes to the losses of all, so that gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(values: Tensor) -> Tensor:
    values = values.contiguous().clone()
    distributed.all_reduce(values)
    return values


def _batch_norm(*values: Any, **named: Any) -> Tensor:
    """As torch's function of that name, for n × c × … values on each process."""
    given = dict(zip(PARAMETERS, values, strict=False)) | named
    if not given.get("training"):
        return functional.batch_norm(**given)
    return _normalized(**{name: value for name, value in given.items() if name != "training"})


def _normalized(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    **constants: float,
) -> Tensor:
    momentum, eps = constants.get("momentum", 0.1), constants.get("eps", 1e-5)
    values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    dims = [dim for dim in range(values.dim()) if dim != 1]
    count = values.new_tensor([values.numel() / values.shape[1]])
    sums = _Sum.apply(torch.cat([values.sum(dims), count]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    if count.device.type == "cpu" and count <= 1:  # looking at the value would wait for another device
        raise ValueError("Expected more than 1 value per channel when training")
    shape = [-1 if dim == 1 else 1 for dim in range(values.dim())]
    centered = values - mean.view(shape)
    variance = _Sum.apply(centered.square().sum(dims)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
        if running_var is not None:
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    normalized = centered * scale.view(shape)
    if bias is not None:
        normalized = normalized + bias.view(shape)
    return normalized.to(input.dtype)
