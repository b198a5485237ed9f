"""The blocks of a network, found once for each architecture and size of images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .backbone import Backbone, Block
from .graph import CONSTANT, DROPOUT, UntracedError, find_blocks, output_shapes

WHOLE = "network"
"""Name of a network that is one block."""


@dataclass(frozen=True)
class Division:
    """What was found out about a network, to be used again."""

    blocks: Sequence[Block]
    shapes: Sequence[torch.Size]
    """Of the blocks' outputs for two images."""
    usual_shapes: Sequence[torch.Size]
    """For larger images where it can take them: a map of 5 × 5 may be a single pixel for small images."""
    note: str
    """Why it is one block, if it is."""
    constants: dict[str, Tensor]
    dropouts: dict[str, nn.Module]


_divisions: dict[tuple[str, int], Division] = {}
"""By architecture and size of the images. Tracing takes up to some seconds."""


def divide(backbone: Backbone, network: nn.Module, size: int) -> Division:
    """A network's blocks, and the shapes of their outputs.

    Raises `UntracedError` if it is of no use, and whatever it raises itself for images of such a size.
    """
    arch = backbone.arch
    if (known := _divisions.get((arch, size))) is None:
        note, divided = "", network
        try:
            blocks, shapes = find_blocks(network, size)
        except UntracedError as error:
            note = f"{arch} cannot be divided into blocks: {error}"
            divided = _whole(copy.deepcopy(network), error)
            blocks = [Block("features", (WHOLE,), _run_whole, arch)]
            shapes = output_shapes(divided, blocks, size)
        usual_shapes = shapes
        if (usual := backbone.preprocessing(None).crop) > size:
            with suppress(Exception):  # it takes images of one size only
                usual_shapes = output_shapes(divided, blocks, usual)
        constants = {name: each for name, each in network.named_buffers() if name.startswith(CONSTANT)}
        dropouts = {name: each for name, each in network.named_children() if name.startswith(DROPOUT)}
        known = _divisions[arch, size] = Division(blocks, shapes, usual_shapes, note, constants, dropouts)
    for name, constant in known.constants.items():
        network.register_buffer(name, constant.clone(), persistent=False)
    for name, dropout in known.dropouts.items():
        network.add_module(name, copy.deepcopy(dropout))
    return known


class Whole(nn.Module):
    """A network of timm that cannot be divided: all but its classifier is one block."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        before = network.state_dict().keys()
        network.reset_classifier(0)
        self.dropped = tuple(f"{WHOLE}.{name}" for name in before - network.state_dict().keys())
        self.add_module(WHOLE, network)


def _whole(network: nn.Module, reason: UntracedError) -> Whole:
    """A network as one block. Raises `UntracedError` if it does not offer that, with the reason for wanting it."""
    if not hasattr(network, "forward_features"):
        raise UntracedError(f"{reason}, and it has no forward_features, which could be one block")
    return Whole(network)


def _run_whole(model: Any, values: Tensor) -> Tensor:
    return cast(Tensor, model.network.forward_features(values))
