"""Reproducible dropout: masks are functions of (training seed, step, layer), drawn for the global batch.

A process that holds some samples of the batch applies their part of the mask, so that any number of processes trains
the same model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.utils import hashing


class KeyedDropout(nn.Dropout):
    """`nn.Dropout` (inverted dropout, Srivastava et al. 2014) that draws its mask from a key, not a global generator.

    Call `set_batch` before each forward pass in training mode.

    Args:
        p: Probability that a value is set to zero.
        layer: Name of the layer, part of the key.
        training_seed: Part of the key.
    """

    def __init__(self, p: float, layer: str, training_seed: int) -> None:
        super().__init__(p)
        self.layer = layer
        self.training_seed = training_seed
        self.step = 0
        self.samples = slice(0, 0)
        self.batch_size = 0

    def set_batch(self, step: int, samples: slice, batch_size: int) -> None:
        """Announce the next input: these samples of a global batch of `batch_size`, at this optimizer step."""
        self.step, self.samples, self.batch_size = step, samples, batch_size

    def forward(self, values: Tensor) -> Tensor:
        """Dropout on `values`, n × anything. Raises RuntimeError if n is not the announced number of samples."""
        if not self.training or not self.p:
            return values
        if len(values) != self.samples.stop - self.samples.start:
            raise RuntimeError(f"{self.layer}: got {len(values)} samples, but {self.samples} were announced")
        generator = torch.Generator().manual_seed(
            hashing.derive_seed("dropout", self.training_seed, self.step, self.layer)
        )
        mask = torch.rand(self.batch_size, *values.shape[1:], generator=generator)[self.samples] >= self.p
        return values * mask.to(values.device) / (1 - self.p)


def set_dropout_batch(modules: Iterable[nn.Module], step: int, samples: slice, batch_size: int) -> None:
    """`KeyedDropout.set_batch` for every such layer among the modules."""
    for module in modules:
        if isinstance(module, KeyedDropout):
            module.set_batch(step, samples, batch_size)
