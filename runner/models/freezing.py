"""Which layers of a model train: what `model.trainable` stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from runner.config.train_schema import TrainStage
from runner.portable.model import LayeredModel, is_within
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, one_line

POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
"""timm's subclasses contain an activation module; they are still no blocks."""


def first_trainable(model: LayeredModel, trainable: str, setting: str = "model.trainable") -> int:
    """Index of the first layer that trains; those after it train, too.

    Args:
        model: With its head.
        trainable: head, all, last:K for the last K blocks of the backbone and the head, or the name of a module.
        setting: Where it is given, for messages.

    Raises `UserError` if there is no such layer, or if it has no weights.
    """
    if trainable == "all":
        return 0
    if last := re.fullmatch(r"last:([1-9]\d{0,3})", trainable):
        starts = block_starts(model)
        if (count := int(last[1])) > len(starts):
            raise UserError(
                f"{setting} is {trainable}, but the backbone has {counted(len(starts), 'block')};"
                " use all to train it as a whole."
            )
        return starts[-count]
    weighted = [index for index in range(model.depth) if model.layer_parameters(index)]
    start = model.head_name if trainable == "head" else trainable
    first = next((index for index in weighted if _is_part(model, index, start)), None)
    if first is None:
        names = ["head", "all", *(model.layer_names[index] for index in weighted)]
        raise UserError(
            f"{setting} is {one_line(trainable, 100)!r}, which is no layer with weights"
            f"{did_you_mean(start[:100], names)};"
            f" it takes head, all, last:1, or a layer such as {names[1 + len(names) // 2]}."
        )
    return first


def check_stages(model: LayeredModel, stages: Sequence[TrainStage]) -> None:
    """Raise `UserError` unless each stage trains at least the layers of the one before it."""
    starts = [
        first_trainable(model, stage.trainable, f"trainable of stage {number} in train.stages")
        for number, stage in enumerate(stages, start=1)
    ]
    for index, (before, start) in enumerate(pairwise(starts)):
        if start > before:
            raise UserError(
                f"train.stages: stage {index + 2} trains {stages[index + 1].trainable}, which is less than"
                f" {stages[index].trainable} of the stage before it; each stage must train at least what the one before"
                " it trains."
            )


def block_starts(model: LayeredModel) -> list[int]:
    """Indices of the layers that the backbone's blocks begin with.

    A block is a module with parts that is a layer, such as a residual block, or one of the same class that is several
    layers. If there are none, as in VGG, the convolutions between two poolings are a block.
    """
    weighted = [index for index in range(model.head_index) if model.layer_parameters(index)]
    kinds = {
        type(module)
        for index in weighted
        for module in model.layer_modules(index)
        if any(True for _ in module.children()) and not isinstance(module, NORMS)
    }
    if kinds:
        starts: dict[str, int] = {}
        for index in weighted:
            for name in filter(
                None, (_around(model, each, kinds) for each in model.blocks_in_order[index].members)
            ):
                starts.setdefault(name, index)
        return sorted(set(starts.values()))
    poolings = [
        index
        for index in range(model.pooling_index)
        if any(isinstance(module, POOLINGS) for module in model.layer_modules(index))
    ]
    following = (next((each for each in weighted if each > index), None) for index in (0, *poolings))
    return sorted({index for index in following if index is not None and index < model.pooling_index})


def _around(model: LayeredModel, member: str, kinds: set[type[nn.Module]]) -> str:
    """The outermost module of one of these classes around a member of a layer; empty if there is none."""
    path = member.split(".")
    names = (".".join(path[: depth + 1]) for depth in range(len(path)))
    return next((name for name in names if type(model.member(name)) in kinds), "")


def _is_part(model: LayeredModel, index: int, module: str) -> bool:
    """Whether a layer, or a part of it, is within the module of a name."""
    block = model.blocks_in_order[index]
    return any(is_within(name, module) for name in (block.name, *block.members))
