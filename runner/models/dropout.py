"""Dropout whose masks are a function of (fit seed, step, layer), drawn for the global batch.

A rank that holds some rows of the batch applies those rows of the mask, so that one process or eight train
the same network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runner.utils import hashing


class KeyedDropout(nn.Dropout):
    """`nn.Dropout` (inverted dropout, Srivastava et al. 2014) that draws from a key instead of a global state.

    Before each training forward `at` says which rows of which step's batch come in.
    """

    def __init__(self, p: float, layer: str, training_seed: int) -> None:
        super().__init__(p)
        self.layer = layer
        self.training_seed = training_seed
        self.step = 0
        self.rows = slice(0, 0)
        self.batch = 0

    def at(self, step: int, rows: slice, batch: int) -> None:
        """The next input holds `rows` of the `batch` rows of optimiser step `step`."""
        self.step, self.rows, self.batch = step, rows, batch

    def forward(self, values: Tensor) -> Tensor:
        """`values`: rows × anything."""
        if not self.training or not self.p:
            return values
        if len(values) != self.rows.stop - self.rows.start:
            raise RuntimeError(f"{self.layer}: {len(values)} rows came in, {self.rows} were announced")
        generator = torch.Generator().manual_seed(
            hashing.derive_seed("dropout", self.training_seed, self.step, self.layer)
        )
        mask = torch.rand(self.batch, *values.shape[1:], generator=generator)[self.rows] >= self.p
        return values * mask.to(values.device) / (1 - self.p)


def set_dropout_batch(layers: Iterable[nn.Module], step: int, rows: slice, batch: int) -> None:
    """Tell every keyed dropout which rows come next."""
    for layer in layers:
        if isinstance(layer, KeyedDropout):
            layer.at(step, rows, batch)
