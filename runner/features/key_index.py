"""Finds a million keys at once: the index of a store's features in one view, in columns."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from runner.data.images import DIGEST_BYTES


class KeyIndex:
    """Where a store holds the features of each image: 28 bytes per feature.

    Digests are sorted by their first 8 bytes, which nearly always tell them apart. The other 12 are compared as well.
    """

    def __init__(self) -> None:
        self._digests = _split(np.empty((0, DIGEST_BYTES), np.uint8))
        """The first 8 bytes, the next 8, and the last 4 of each digest."""
        self._places = np.empty(0, np.int64)
        """Shard and row of each digest."""
        self._added: list[tuple[int, np.ndarray]] = []
        """Shards that are not sorted in yet, because nobody asked."""

    def add(self, shard: int, digests: np.ndarray) -> None:
        """Add a shard that has these digests (n × 20 bytes) in its rows. If another has one too, the first counts."""
        self._added.append((shard, digests))

    def remove(self, shards: Collection[int]) -> None:
        """Remove these shards."""
        self._merge()
        kept = ~np.isin(self._places >> 32, list(shards))
        self._digests, self._places = [part[kept] for part in self._digests], self._places[kept]

    def find(self, digests: np.ndarray) -> np.ndarray:
        """The place of each of n digests: its shard's number << 32 | its row; −1 where it is not stored."""
        self._merge()
        wanted = _split(digests)
        order = np.argsort(wanted[0])  # so that memory is read in order: twice as fast for a million
        wanted = [column[order] for column in wanted]
        places = np.full(len(digests), -1, np.int64)
        at = np.searchsorted(self._digests[0], wanted[0])
        left = np.arange(len(digests))
        while len(left):  # more than once only if different digests start with the same bytes
            left = left[at[left] < len(self._places)]
            left = left[self._digests[0][at[left]] == wanted[0][left]]
            here = at[left]
            same = (self._digests[1][here] == wanted[1][left]) & (self._digests[2][here] == wanted[2][left])
            places[order[left[same]]] = self._places[here[same]]
            left = left[~same]
            at[left] += 1
        return places

    def _merge(self) -> None:
        if not self._added:
            return
        added = _split(np.concatenate([digests for _, digests in self._added]))
        columns = [np.concatenate(pair) for pair in zip(self._digests, added, strict=True)]
        rows = [shard << 32 | np.arange(len(digests), dtype=np.int64) for shard, digests in self._added]
        places = np.concatenate([self._places, *rows])
        order = np.argsort(columns[0], kind="stable")
        self._digests, self._places = [column[order] for column in columns], places[order]
        self._added.clear()


def _split(digests: np.ndarray) -> list[np.ndarray]:
    """Digests (n × 20 bytes) as three columns of numbers."""
    bounds = ((0, 8, np.uint64), (8, 16, np.uint64), (16, 20, np.uint32))
    return [np.ascontiguousarray(digests[:, start:end]).view(kind)[:, 0] for start, end, kind in bounds]
