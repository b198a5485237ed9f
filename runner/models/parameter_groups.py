"""Parameter groups: which learning rate and weight decay each trainable parameter has."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch import nn

from runner.config.train_schema import OptimConfig
from runner.models.freezing import block_starts
from runner.models.transfer_model import TransferModel
from runner.portable.model import is_within
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

OTHERS = "others"
"""Name of the parameters that no group names."""


def parameter_groups(model: TransferModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of what trains now, the one with `optim.lr` first.

    Each has `params`, `lr`, `weight_decay` and a `name`, which several share if they differ in weight decay only.

    Raises `UserError` for a group without parameters of its own that ever train, and for a layer decay without blocks.
    """
    rates = {name: optim.lr * factor for name, factor in _factors(model, optim).items()} | optim.groups
    layer_of = _layer_names(model) if optim.layer_decay < 1 else {}
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    trained, nonempty = model.trainable_state(), set()
    for name, parameter in model.named_parameters():
        named = max((group for group in optim.groups if is_within(name, group)), key=len, default="")
        if name in trained or parameter.requires_grad:
            nonempty.add(named)
        if parameter.requires_grad:
            decays = optim.decay_norm or parameter.ndim > 1
            group = named or layer_of.get(name, OTHERS)
            members.setdefault((group, optim.weight_decay if decays else 0.0), []).append(parameter)
    for name in optim.groups:
        if name not in nonempty:
            known = {part for parameter in trained for part in _modules_around(parameter)}
            raise UserError(
                f"optim.groups names {name!r}, which has no trainable parameters of its own"
                f"{did_you_mean(name, sorted(known - {name}))}; model.trainable is {model.spec.trainable!r}."
            )
    return [
        {"params": members[name, decay], "lr": rate, "weight_decay": decay, "name": name}
        for name, rate in rates.items()
        for decay in (optim.weight_decay, 0.0)[: 1 if optim.decay_norm or not optim.weight_decay else 2]
        if (name, decay) in members
    ]


def _modules_around(parameter: str) -> list[str]:
    """Names of the modules around a parameter: features, features.24."""
    parts = parameter.split(".")[:-1]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _factors(model: TransferModel, optim: OptimConfig) -> dict[str, float]:
    """Factors of `optim.lr` by name of a part, the head first.

    The rule is that of BEiT (Bao et al., 2022) and timm: the head has the whole rate, each block before it the rate of
    the next one times the decay, and what precedes all blocks once more.
    """
    if optim.layer_decay == 1:
        return {OTHERS: 1.0}
    count = len(block_starts(model))
    if not count:
        raise UserError(
            f"optim.layer_decay needs a backbone of several blocks, but {model.spec.arch} has none; leave it out, or"
            " name learning rates in optim.groups."
        )
    names = ["head", *(f"block{number}" for number in range(count, 0, -1)), "stem"]
    return {name: optim.layer_decay**distance for distance, name in enumerate(names)}


def _layer_names(model: TransferModel) -> dict[str, str]:
    """The part of each parameter: head, blockN (from 1) or stem."""
    starts = block_starts(model)
    parts: dict[str, str] = {}
    for index in reversed(range(model.depth)):  # a parameter of several layers belongs to the first
        number = bisect_right(starts, index)
        part = "head" if index >= model.head_index else f"block{number}" if number else "stem"
        parts |= dict.fromkeys(model.layer_tensors(index), part)
    return parts
