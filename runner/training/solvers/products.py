"""Inner products of the features of images, and those of earlier solutions in the same process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

BLOCK = 512
"""Rows that are multiplied at a time."""
MEMORY_SHARE = 0.25
"""Part of the free memory that kept products may take."""


def products(rows: Tensor, kept: Tensor | None = None) -> Tensor:
    """X Xᵀ of rows X (n × d, floating point): n × n, float64. Each pair is computed once.

    Args:
        rows: X.
        kept: The products of the first rows, if they are known.
    """
    count, known = len(rows), 0 if kept is None else len(kept)
    result = torch.empty(count, count, dtype=torch.float64)
    if kept is not None:
        result[:known, :known] = kept
    rows = rows.double()
    for start in range(known, count, BLOCK):
        stop = min(start + BLOCK, count)
        result[start:stop, :stop] = rows[start:stop] @ rows[:stop].T
        result[:start, start:stop] = result[start:stop, :start].T
    return result


@dataclass
class _Table:
    """Features of images, and their products."""

    numbers: dict[bytes, int]
    """Of each image by a digest of its features."""
    rows: Tensor
    products: Tensor

    def count_known(self, digests: Sequence[bytes]) -> int:
        return sum(digest in self.numbers for digest in digests)

    def add(self, digests: Sequence[bytes], rows: Tensor) -> None:
        """Add the images that are not in the table."""
        new = {digest: index for index, digest in enumerate(digests) if digest not in self.numbers}
        if new:
            self.numbers |= {digest: len(self.numbers) + index for index, digest in enumerate(new)}
            self.rows = torch.cat([self.rows, rows[[*new.values()]]])
            self.products = products(self.rows, self.products)

    def of(self, digests: Sequence[bytes]) -> Tensor:
        """The products of these images; not to be modified."""
        numbers = torch.tensor([self.numbers[digest] for digest in digests])
        if torch.equal(numbers, torch.arange(len(self.products))):
            return self.products
        return self.products[numbers].index_select(1, numbers)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.products.nbytes


class KeptProducts:
    """Products that several solutions in one process share: for other splits of the same images, or other pyramids.

    Images are known by their features, whatever these were computed from.

    Args:
        by_level: Keep the products of each level of a pyramid. The sum of those of its levels is that of a pyramid.
    """

    def __init__(self, by_level: bool = False) -> None:
        self.by_level = by_level
        self._tables: list[_Table] = []
        """The least recently used first."""

    def of(self, features: Tensor, levels: Sequence[int]) -> Tensor:
        """X Xᵀ of features X: n × n, float64; not to be modified.

        Args:
            features: n × d, float32, on the CPU.
            levels: Features of each level of a pyramid; their sum is d.
        """
        first, *others = features.split([*levels], dim=1) if self.by_level else [features]
        total = self._of_level(first)
        for number, level in enumerate(others):
            of_level = self._of_level(level)
            total = total.add_(of_level) if number else total + of_level
        return total

    def _of_level(self, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        digests = [hashlib.blake2b(row, digest_size=16).digest() for row in rows.numpy()]
        if rows.nbytes + 8 * len(rows) ** 2 > self._limit():
            return products(rows)
        alike = [table for table in self._tables if table.rows.shape[1] == rows.shape[1]]
        table = max(alike, key=lambda each: each.count_known(digests), default=None)
        if table is None or 2 * table.count_known(digests) < len(rows):
            table = _Table({}, rows[:0], torch.empty(0, 0, dtype=torch.float64))
        self._tables = [each for each in self._tables if each is not table]
        table.add(digests, rows)
        result = table.of(digests)
        self._tables.append(table)
        while sum(each.nbytes for each in self._tables) > self._limit():
            self._tables.pop(0)
        return result

    def _limit(self) -> float:
        kept = sum(table.nbytes for table in self._tables)
        return MEMORY_SHARE * (psutil.virtual_memory().available + kept)
