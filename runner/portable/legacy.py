"""Upgrades models that were logged in format 1, whose names differ."""

from __future__ import annotations

from typing import Any

from torch import Tensor

FORMAT_1 = "vgg-runner-model-1"
FORMAT_2 = "vgg-runner-model-2"


def upgraded(
    description: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and tensors of a format-1 model under the names of format 2; format 2 is returned as it is."""
    if description["format"] != FORMAT_1:
        return description, tensors
    model = dict(description["network"])
    model["normalization"] = model.pop("normalisation")
    if model["head"] == "report":
        model["head"] = "classifier"
    renamed = {name: value for name, value in description.items() if name != "network"}
    return (
        {**renamed, "format": FORMAT_2, "model": model},
        {name.replace("normalise.", "normalize.", 1): value for name, value in tensors.items()},
    )
