"""Features in memory: a table for each store and view, which all splits of the same images share.

The folds of a cross-validation are other splits of the same images: each of them selects rows of one table.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore

READ_ROWS = 4096
"""Rows that are read from a store at a time."""
TableKey: TypeAlias = tuple[Path, int, str]
"""The store's folder, the view, and a digest of the images."""


@dataclass(eq=False)
class FeatureTable:
    """Features of images in one view: a row for each image, which is read when it is first needed."""

    rows: Tensor
    """n × feature. Memory is taken by the rows that are filled."""
    filled: np.ndarray
    """n booleans: whether the row was read."""

    @classmethod
    def empty(cls, images: int, shape: torch.Size, dtype: torch.dtype) -> FeatureTable:
        """A table for a number of images."""
        return cls(torch.empty(images, *shape, dtype=dtype), np.zeros(images, bool))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are filled."""
        return int(self.filled.sum()) * self.rows[:1].nbytes

    def has(self, indices: np.ndarray) -> bool:
        """Whether these rows are filled."""
        return bool(self.filled[indices].all())

    def fill(self, indices: np.ndarray, keys: FeatureKeys, store: ShardStore) -> None:
        """Read what is not filled yet of these rows; `keys` has the key of each."""
        wanted = np.flatnonzero(~self.filled[indices])
        for start in range(0, len(wanted), READ_ROWS):
            part = wanted[start : start + READ_ROWS]
            self.rows[torch.from_numpy(indices[part])] = store.read(keys.take(part))
            self.filled[indices[part]] = True


@dataclass(eq=False)
class InMemoryFeatures:
    """The tables, the least recently used first. Experiments with the same images may share them."""

    tables: OrderedDict[TableKey, FeatureTable] = field(default_factory=OrderedDict)

    def table(self, key: TableKey, images: int, shape: torch.Size, dtype: torch.dtype) -> FeatureTable:
        """The table of a key, which is new and empty if there is none."""
        if key not in self.tables:
            self.tables[key] = FeatureTable.empty(images, shape, dtype)
        self.tables.move_to_end(key)
        return self.tables[key]

    def shrink(self, limit: float) -> None:
        """Drop tables until the others have at most `limit` bytes; the last one used is kept."""
        while len(self.tables) > 1 and sum(table.nbytes for table in self.tables.values()) > limit:
            self.tables.popitem(last=False)
