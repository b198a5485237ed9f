"""Sums from which the training loss and accuracy of an epoch are computed."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from runner.utils.tensors import float64_device


class EpochSums:
    """Three sums of an epoch: loss, correct predictions, and number of images, without those of skipped steps.

    Each process adds up its own images. A snapshot needs the sums of all processes, but collecting them is a collective
    operation; so `all_processes` holds them only after `gather` or `reduce`, and None after the next step.

    Args:
        accelerator: The processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._device = float64_device(accelerator.device)
        self.reset()

    def reset(self) -> None:
        """Start a new epoch."""
        self._loss_and_hits = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._images = 0.0
        self.all_processes: list[list[float]] | None = [[0.0] * 3] * self._accelerator.num_processes

    def add(self, loss_and_hits: Tensor, images: int) -> None:
        """Add summed loss and correct predictions (2 values) of some images, without waiting for the device."""
        self._loss_and_hits += loss_and_hits.to(self._device)
        self._images += images

    def gather(self) -> None:
        """Set `all_processes` on every process. Collective: all processes call it together."""
        self.all_processes = gather_object([self._own()])

    def reduce(self) -> tuple[float, float, float]:
        """The three sums over all processes. Collective: all processes call it together."""
        own = torch.tensor(self._own(), dtype=torch.float64, device=self._device)
        loss, hits, images = self._accelerator.reduce(own, "sum").tolist()
        self.all_processes = [
            [loss, hits, images],
            *[[0.0] * 3] * (self._accelerator.num_processes - 1),
        ]
        return loss, hits, images

    def state(self) -> list[list[float]] | None:
        """The sums of each process; None if they are not known here."""
        return [self._own()] if self._accelerator.num_processes == 1 else self.all_processes

    def restore(self, state: list[list[float]]) -> None:
        """Continue from a `state`. If the number of processes has changed, rank 0 takes the totals."""
        accelerator = self._accelerator
        same = len(state) == accelerator.num_processes
        if same:
            own = state[accelerator.process_index]
        else:
            totals = [math.fsum(values) for values in zip(*state, strict=True)]
            own = totals if accelerator.process_index == 0 else [0.0] * 3
        *loss_and_hits, self._images = own
        self._loss_and_hits = torch.tensor(loss_and_hits, dtype=torch.float64, device=self._device)
        self.all_processes = state if same else None

    def _own(self) -> list[float]:
        return [*self._loss_and_hits.tolist(), float(self._images)]
