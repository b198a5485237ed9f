"""Optimizers.

To add one, register a factory: `@OPTIMIZERS.register(name, description, uses)`. It is called with torch's parameter
groups and the optimizer's settings. This module is imported for `--help` too, so that torch is imported where it is
needed.

Optimizers are fused: one pass over each tensor, which saves a fifth of an epoch of a pooled head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runner.config.choices import OPTIMIZERS
from runner.config.train_schema import OptimConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]


@OPTIMIZERS.register("adam", "Adam")
def _adam(groups: Groups, optim: OptimConfig) -> Optimizer:
    import torch

    return torch.optim.Adam(groups, optim.lr, weight_decay=optim.weight_decay, fused=True)


@OPTIMIZERS.register("adamw", "Adam with decoupled weight decay")
def _adamw(groups: Groups, optim: OptimConfig) -> Optimizer:
    import torch

    return torch.optim.AdamW(groups, optim.lr, weight_decay=optim.weight_decay, fused=True)


@OPTIMIZERS.register("sgd", "SGD with momentum", uses=("momentum",))
def _sgd(groups: Groups, optim: OptimConfig) -> Optimizer:
    import torch

    return torch.optim.SGD(
        groups, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )


def keep_state(optimizer: Optimizer, before: Mapping[Tensor, dict[str, Any]]) -> None:
    """Continue with what an optimizer of the same kind knew of parameters that this one has, too."""
    import torch

    optimizer.state.update(before)
    for group in optimizer.param_groups:
        new = [parameter for parameter in group["params"] if parameter not in before]
        # Fused SGD wants a momentum of all parameters of a group, or of none. It begins with zero.
        if len(new) < len(group["params"]) and any("momentum_buffer" in state for state in before.values()):
            for parameter in new:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def build(groups: Groups, optim: OptimConfig) -> Optimizer:
    """The optimizer over parameter groups, each with its parameters and learning rate."""
    created: Optimizer = OPTIMIZERS.find(optim.name).implementation(groups, optim)
    return created
