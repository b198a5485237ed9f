"""Failures that a library tells in words of its own, and what they mean to a user of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.utils.errors import BEREFT, UserError

ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch says on a host, and CUDA's libraries on a GPU, in a RuntimeError."""
CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say when a peer is gone."""


@contextmanager
def explained(experiment: Experiment, accelerator: Accelerator) -> Iterator[None]:
    """Within the block, want of memory and the loss of another process are `UserError`s that say what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
            each in text for each in ALLOCATION
        ):
            raise UserError(_memory(experiment, accelerator, text)) from error
        distributed = accelerator.num_processes > 1
        if distributed and (
            isinstance(error, torch.distributed.DistError) or any(each in text for each in CONNECTION)
        ):
            raise UserError(BEREFT) from error
        raise


def _memory(experiment: Experiment, accelerator: Accelerator, text: str) -> str:
    train, features = experiment.train, experiment.features
    where = "The GPU" if accelerator.device.type == "cuda" else "This machine"
    return (
        f"{where} has too little memory ({text[:200] or 'MemoryError'}): where it trains, lower train.batch_size"
        f" ({train.batch_size}) or raise train.accumulate ({train.accumulate}); where it computes features, lower"
        f" features.batch_size ({features.batch_size}) or features.memory ({features.memory:g} GiB)."
    )
