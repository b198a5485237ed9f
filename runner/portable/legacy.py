"""Models that were logged in earlier formats.

Format 1 has other names. Format 2 has all tensors in one file; format 3 has the frozen ones in a file of their own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

FORMAT_1 = "vgg-runner-model-1"
FORMAT_2 = "vgg-runner-model-2"
FORMAT_3 = "vgg-runner-model-3"


def upgraded(
    description: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and tensors of a format-1 model under the present names; later ones are returned as they are."""
    if description["format"] != FORMAT_1:
        return description, tensors
    model = dict(description["network"])
    model["normalization"] = model.pop("normalisation")
    if model["head"] == "report":
        model["head"] = "classifier"
    renamed = {name: value for name, value in description.items() if name != "network"}
    return (
        {**renamed, "format": FORMAT_3, "model": model},
        {name.replace("normalise.", "normalize.", 1): value for name, value in tensors.items()},
    )
