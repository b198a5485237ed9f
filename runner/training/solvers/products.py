"""Inner products of the features of images, and those of earlier solutions in the same process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import psutil
import torch
from torch import Tensor

BLOCK = 512
"""Rows that are multiplied at a time."""
MEMORY_SHARE = 0.25
"""Part of the free memory that kept products may take."""


def products(rows: Tensor) -> Tensor:
    """X Xᵀ of rows X (n × d, floating point): n × n, float64. Each pair is computed once."""
    count = len(rows)
    result = torch.empty(count, count, dtype=torch.float64)
    rows = rows.double()
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        result[start:stop, :stop] = rows[start:stop] @ rows[:stop].T
        result[:start, start:stop] = result[start:stop, :start].T
    return result


def pyramid_products(features: Tensor, levels: Sequence[int], kept: KeptProducts | None = None) -> Tensor:
    """X Xᵀ of features X (n × d, float32, on the CPU), as the sum of the products of each level: n × n, float64.

    Args:
        features: X.
        levels: Features of each level of a pyramid; their sum is d.
        kept: Products of levels that earlier solutions had, which change no bit of the result.

    With one level, what is kept is returned: it is not to be modified.
    """
    of_level = products if kept is None else kept.of
    first, *others = features.split([*levels], dim=1)
    total = of_level(first)
    for number, level in enumerate(others):
        total = total.add_(of_level(level)) if number else total + of_level(level)
    return total


class KeptProducts:
    """Products that several solutions in one process share: those of the same images in the same order.

    They are those of no more images, nor in another order: the last digits of a product depend on the shape of the
    matrices that are multiplied, and a result must not depend on what was solved before. Images are known by their
    features, whatever these were computed from.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bytes], Tensor] = {}
        """By the number of features and a digest of the rows; the least recently used first."""

    def of(self, rows: Tensor) -> Tensor:
        """`products` of rows (n × d, float32, on the CPU); not to be modified."""
        key = rows.shape[1], hashlib.blake2b(rows.contiguous().numpy().data, digest_size=16).digest()
        found = self._kept.pop(key, None)
        if found is None:
            found = products(rows)
        self._kept[key] = found
        while (taken := self.nbytes) > MEMORY_SHARE * (psutil.virtual_memory().available + taken):
            del self._kept[next(iter(self._kept))]
        return found

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(each.nbytes for each in self._kept.values())
