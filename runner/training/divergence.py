"""What tells the user that training diverged to values that are not finite."""

from __future__ import annotations

import math

from runner.utils.errors import DivergedError


def check_finite(which: str, loss: float, epoch: int, lr: str) -> None:
    """Raise `DivergedError` if the loss of an epoch (from 0) is not finite.

    Args:
        which: training or validation.
        loss: Of the epoch.
        epoch: From 0.
        lr: The setting of the learning rate, and its value.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"The {which} loss is {loss} in epoch {epoch + 1}: training diverged;"
            f" lower {lr} or set train.clip."
        )


def step_diverged(step: int, steps_per_epoch: int, lr: str) -> DivergedError:
    """The error for an optimizer step (from 0) whose loss is not finite; `lr` as in `check_finite`."""
    epoch, batch = divmod(step, steps_per_epoch)
    return DivergedError(
        f"The training loss is not finite at step {step} (epoch {epoch + 1}, batch {batch + 1} of"
        f" {steps_per_epoch}): training diverged; lower {lr}, set train.clip, or skip"
        " such steps with train.nonfinite=skip."
    )
