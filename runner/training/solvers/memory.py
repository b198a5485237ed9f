"""Whether there is memory for a solution. Rank 0 solves, so it decides for all processes."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from accelerate.utils import broadcast_object_list

from runner.utils.console import format_bytes
from runner.utils.errors import UserError

FEATURE_COPIES, SQUARE_COPIES = 3, 6
"""Matrices in float64 that a solution needs at a time: of the features, and of the smaller of images and features."""


def check_memory(images: int, features: int, make_room: Callable[[], None]) -> None:
    """Raise `UserError` if solving for so many images and features per image does not fit into memory.

    Every process calls this function, and either all of them raise the error or none.

    Args:
        images: Training and validation images.
        features: Per image.
        make_room: Drops what is in memory to save time only. Called on all processes, if there is not enough.
    """
    if _shortage(images, features):
        make_room()
        if shortage := _shortage(images, features):
            raise UserError(shortage)


def _shortage(images: int, features: int) -> str:
    """What rank 0 lacks, in a sentence; empty if it has enough."""
    needed = 8 * (FEATURE_COPIES * images * features + SQUARE_COPIES * min(images, features) ** 2)
    free = psutil.virtual_memory().available
    sentence = (
        f"Solving a linear head for {images:,} images with {features:,} features each needs"
        f" {format_bytes(needed)} of memory, and {format_bytes(free)} are free; pool less (model.pool), take fewer"
        " images, or train it by steps (train.solver=gradient)."
    )
    return str(broadcast_object_list([sentence if needed > free else ""])[0])
