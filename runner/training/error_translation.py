"""Translates errors of libraries into messages for users: memory that ran out, processes that are gone or hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.utils.errors import PeerLostError, UserError
from runner.utils.peers import explain_lost_connection, peer_signal
from runner.utils.signals import Interrupted

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
"""Parts of a RuntimeError's text when torch on a host, or a CUDA library on a GPU, cannot allocate memory."""
ONE_VALUE = "Expected more than 1 value per channel"
"""A part of the text of torch's ValueError for batch statistics of one value."""
TIMED_OUT = ("Timed out waiting", "Watchdog caught collective operation timeout")
"""Parts of the text when gloo or NCCL has waited too long for another process."""


@contextmanager
def translate_errors(experiment: Experiment, accelerator: Accelerator) -> Iterator[None]:
    """Raise `UserError` where memory runs out, batch statistics are of one value, or another process is gone or hangs.

    Other errors pass unchanged.

    Where another process was asked to stop, raise `Interrupted`, as in that one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if accelerator.num_processes > 1 and (reason := explain_lost_connection(error)):
            if (number := peer_signal()) is not None:
                raise Interrupted(number) from error
            raise PeerLostError(reason) from error
        if isinstance(error, ValueError) and ONE_VALUE in str(error):
            raise UserError(_one_value(experiment)) from error
        if not isinstance(error, (MemoryError, RuntimeError)):
            raise
        text = " ".join(str(error).split())
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _contains(text, OUT_OF_MEMORY):
            raise UserError(_out_of_memory(experiment, accelerator, text)) from error
        if accelerator.num_processes > 1 and _contains(text, TIMED_OUT):
            raise UserError(
                f"Another process of this launch has not answered for {experiment.train.timeout:g} minutes"
                " (train.timeout), so all stop; see what holds it up, such as a disk that does not answer, and run the"
                " same command with --resume auto to continue."
            ) from error
        raise


def _one_value(experiment: Experiment) -> str:
    size = experiment.train.batch_size
    return (
        "Batch normalization that trains got a single value per channel: the last batch of an epoch, or a part of it,"
        f" has one image, whose map there is one pixel. Set train.batch_size (now {size}) so that more images are left,"
        " or train.accumulate to 1, or let model.trainable begin behind batch normalization."
    )


def _contains(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)


def _out_of_memory(experiment: Experiment, accelerator: Accelerator, text: str) -> str:
    train, features = experiment.train, experiment.features
    where = "The GPU" if accelerator.device.type == "cuda" else "This machine"
    return (
        f"{where} has not enough memory ({text[:200] or 'MemoryError'}). If this happened in training, lower"
        f" train.batch_size ({train.batch_size}) or raise train.accumulate ({train.accumulate}); if it happened while"
        f" computing features, lower features.batch_size ({features.batch_size}) or features.memory"
        f" ({features.memory:g} GiB)."
    )
