"""Settings that follow `train.stages` where they are not given."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any


def follow_stages(tree: Mapping[str, Any], given: Collection[str] | None = None) -> dict[str, Any]:
    """Settings with the `train.epochs` and the `model.trainable` of their `train.stages`, where these are not given.

    Stages that are no stages decide nothing; they are refused where settings are validated.

    Args:
        tree: Nested settings. It is not changed.
        given: Names of settings that are given, where stages were put into settings that had none; None: those that the
            tree has.
    """
    train = tree.get("train")
    stages = train.get("stages") if isinstance(train, Mapping) else None
    filled = copy.deepcopy(dict(tree))
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages) or not stages:
        return filled
    decided = {}
    if isinstance(trainable := stages[-1].get("trainable"), str):
        decided["model", "trainable"] = trainable
    epochs = [stage.get("epochs") for stage in stages]
    if all(type(count) is int and count > 0 for count in epochs):
        decided["train", "epochs"] = sum(epochs)
    for (group, name), value in decided.items():
        own = filled.setdefault(group, {})
        is_given = name in own if given is None else f"{group}.{name}" in given
        if isinstance(own, dict) and not is_given:
            own[name] = value
    return filled
