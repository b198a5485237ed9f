"""Divides groups of images, which may span classes, into splits or folds with all classes in proportion.

scikit-learn's StratifiedGroupKFold divides into equal folds only, and places each group by what the groups before it
have led to: there, one new image moves a quarter to half of the others to another fold, here 1 to 8 %. Folds are about
as even.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array, hstack

from runner.data.splitting.clusters import Clusters

MOST_PASSES = 200
"""Rounds of improvement; in each one, a cluster of each class may move."""
SMALLEST_GAIN = 1e-9

Sizes = Callable[[int], Sequence[float]]
"""The wanted sizes of the parts, for a number of images of one class."""


def divide_groups(clusters: Clusters, sizes: Sizes, required: Sequence[int]) -> np.ndarray:
    """The part of each cluster, int16.

    First the clusters of which most images are of one class are cut as single images would be. Then clusters are moved,
    few as a rule, until no move brings the sizes of classes in parts nearer to the wanted ones.

    Args:
        clusters: The clusters.
        sizes: Wanted sizes of the parts.
        required: Parts in which every class should be.
    """
    counts = clusters.counts
    wanted = np.array([sizes(int(total)) for total in counts.sum(axis=0)], float)
    division = _Division(counts, wanted, _cut(clusters, sizes))
    division.improve()
    for _ in range(len(required)):
        if not division.complete(required):
            break
        division.improve(required)
    return division.parts


def _cut(clusters: Clusters, sizes: Sizes) -> np.ndarray:
    """A first division: within a class, a cluster goes where its middle lies."""
    parts = np.empty(len(clusters), np.int16)
    for stratum in clusters.order(_main_classes(clusters)):
        images = clusters.sizes[stratum]
        ends = np.cumsum(images)
        bounds = np.cumsum(sizes(int(ends[-1])))
        parts[stratum] = np.searchsorted(bounds[:-1], ends - images / 2)
    return parts


def _main_classes(clusters: Clusters) -> np.ndarray:
    """The class of most images of each cluster; of several, that of its first image."""
    table = clusters.counts.tocoo()
    cluster, label = table.coords
    order = np.lexsort((label, label != clusters.labels[cluster], -table.data, cluster))
    return label[order[np.unique(cluster[order], return_index=True)[1]]]


class _Division:
    """Clusters in parts, and how far the sizes are from the wanted ones."""

    def __init__(self, counts: csr_array, wanted: np.ndarray, parts: np.ndarray) -> None:
        self.parts = parts
        self.classes = counts.shape[1]
        totals = counts.sum(axis=1)
        with_all = hstack([counts, totals[:, None]])  # all images, as another class
        self.counts = csr_array(with_all, dtype=np.float64)
        self.own = csr_array(counts, dtype=np.float64)
        self.wanted = np.vstack([wanted, wanted.sum(axis=0)])
        self.weights = 1 / np.maximum(self.wanted.sum(axis=1), 1)
        self.own_cost = self.counts.power(2) @ self.weights

    def sizes(self) -> np.ndarray:
        """The number of images of each class in each part; the last row is that of all."""
        members = csr_array(
            (np.ones(len(self.parts)), (np.arange(len(self.parts)), self.parts)),
            shape=(len(self.parts), self.wanted.shape[1]),
        )
        return (self.counts.T @ members).toarray()

    def cost(self, sizes: np.ndarray) -> float:
        """The sum of squared differences to the wanted sizes, relative to the sizes of the classes."""
        return float((((sizes - self.wanted) ** 2).sum(axis=1) * self.weights).sum())

    def changes(self, sizes: np.ndarray) -> np.ndarray:
        """What moving each cluster to each part would add to the cost."""
        there = self.counts @ ((sizes - self.wanted) * self.weights[:, None])
        here = np.take_along_axis(there, self.parts[:, None].astype(np.intp), 1)
        changes = np.round(2 * (self.own_cost[:, None] + there - here), 9)  # ties do not hang on the last bit
        np.put_along_axis(changes, self.parts[:, None].astype(np.intp), 0.0, 1)
        return changes

    def improve(self, required: Sequence[int] = ()) -> None:
        """Move clusters as long as this lowers the cost, without taking a class's last images from a required part."""
        sizes = self.sizes()
        for _ in range(MOST_PASSES):
            changes = self.changes(sizes)
            target = changes.argmin(axis=1)
            gains = -changes[np.arange(len(target)), target]
            candidates = np.flatnonzero(gains > SMALLEST_GAIN)
            candidates = candidates[np.argsort(-gains[candidates], kind="stable")]
            moves = self._independent(self._movable(candidates, sizes, required))
            before, cost = self.parts.copy(), self.cost(sizes)
            while len(moves):
                self.parts[moves] = target[moves]
                moved = self.sizes()
                if self.cost(moved) < cost:
                    break
                self.parts[moves] = before[moves]
                moves = moves[: len(moves) // 2]  # together they move too many images: only the best ones
            if not len(moves):
                return
            sizes = moved

    def _movable(self, candidates: np.ndarray, sizes: np.ndarray, required: Sequence[int]) -> np.ndarray:
        """Without the clusters that are a class's last images in a required part."""
        rows = self.own[candidates]
        cluster = _row_numbers(rows)
        part = self.parts[candidates[cluster]]
        is_last = (sizes[rows.indices, part] <= rows.data) & np.isin(part, list(required))
        return np.delete(candidates, cluster[is_last])

    def _independent(self, candidates: np.ndarray) -> np.ndarray:
        """The candidates that have no class in common with one before them that is taken too, in order."""
        taken = np.zeros(len(candidates), bool)
        left = np.arange(len(candidates))
        while len(left):
            rows = self.own[candidates[left]]
            cluster, classes = _row_numbers(rows), rows.indices
            first = np.empty(self.classes, np.int64)
            first[classes[::-1]] = cluster[::-1]  # of each class, its first candidate
            waits = np.zeros(len(left), bool)
            waits[cluster[first[classes] != cluster]] = True
            taken[left[~waits]] = True
            used = np.zeros(self.classes, bool)
            used[classes[~waits[cluster]]] = True
            waits[cluster[used[classes]]] = False
            left = left[waits]
        return candidates[taken]

    def _row(self, cluster: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes of a cluster, and their images."""
        start, end = self.own.indptr[cluster], self.own.indptr[cluster + 1]
        return self.own.indices[start:end], self.own.data[start:end]

    def complete(self, required: Sequence[int]) -> bool:
        """Move clusters into required parts in which their class is missing. Returns whether one was moved."""
        sizes = self.sizes()
        has_moved = False
        columns = self.counts.tocsc()
        absent = np.argwhere(sizes[: self.classes, list(required)] == 0)
        for label, part in ((int(row), required[column]) for row, column in absent):
            if sizes[label, part] or not self.wanted[label].sum():
                continue
            holders = columns.indices[columns.indptr[label] : columns.indptr[label + 1]]
            changes = self.changes(sizes)[holders, part]
            for cluster in holders[np.argsort(changes, kind="stable")].tolist():
                classes, images = self._row(cluster)
                source = self.parts[cluster]
                if source not in required or (sizes[classes, source] > images).all():
                    self.parts[cluster] = part
                    sizes = self.sizes()
                    has_moved = True
                    break
        return has_moved


def _row_numbers(rows: csr_array) -> np.ndarray:
    """The row of each value."""
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
