"""Divides clusters of images into parts, class by class: splits, or folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.splitting.clusters import Clusters

TRAIN, VAL, TEST = range(len(SPLITS))


@dataclass(frozen=True)
class SplitSizes:
    """The sizes of splits, for a number of images of one class."""

    split: SplitConfig
    parts: frozenset[int] = frozenset({TRAIN, VAL, TEST})
    """The splits to divide the images into."""
    uses_all: bool = False
    """With split.by=count, images that remain are for training too."""

    @property
    def required(self) -> frozenset[int]:
        """The splits in which every class must be."""
        return self.parts - {VAL} if self.split.val == "rest" else self.parts

    @property
    def order(self) -> tuple[int, ...]:
        """The splits in the order in which they are filled, and where the clusters go that fit into none."""
        if self.split.by == "fraction":
            return TEST, VAL, TRAIN, TRAIN
        if self.split.val == "rest" and VAL in self.parts:
            return TRAIN, TEST, VAL, VAL
        return TRAIN, VAL, TEST, TRAIN if self.uses_all else NO_SPLIT

    def limits(self, total: int) -> tuple[int, int, int]:
        """The most images of each split, in that order.

        They are rounded up for test, then for validation, as scikit-learn's `train_test_split` does when applied twice.
        """
        train, val, test = (size if part in self.parts else 0 for part, size in enumerate(self.split.sizes))
        if self.split.by == "fraction":
            in_test = share(total, test, train + val + test)
            in_val = share(total - in_test, val, train + val)
            return in_test, in_val, total - in_test - in_val
        in_test = max(0, min(int(test), total - int(train) - int(val)))
        if self.order[-1] == VAL:
            return int(train), in_test, total
        in_train = max(0, total - int(val) - in_test) if self.uses_all else int(train)
        return in_train, int(val), in_test

    def of(self, total: int) -> list[int]:
        """The sizes if no cluster has several images; the last one is what remains."""
        sizes = []
        for limit in self.limits(total):
            sizes.append(min(limit, total))
            total -= sizes[-1]
        return [*sizes, total]


def share(total: int, part: float, whole: float) -> int:
    """⌈total · part / whole⌉ in exact arithmetic: 24 · ⅓ is 8, not 9."""
    ratio = Fraction(part).limit_denominator(10**6) / Fraction(whole).limit_denominator(10**6)
    return ceil(total * ratio)


def divide_by_class(clusters: Clusters, sizes: SplitSizes) -> np.ndarray:
    """The split of each cluster, int8. A cluster counts for the class of its first image.

    Within each class the clusters are ordered by their random numbers and cut, so that a new image or class changes
    the split of few others.
    """
    splits = np.empty(len(clusters), np.int8)
    order = np.array(sizes.order, np.int8)
    for stratum in clusters.order(clusters.labels):
        images = clusters.sizes[stratum]
        total = int(images.sum())
        if total == len(stratum):
            splits[stratum] = np.repeat(order, sizes.of(total))
        else:
            splits[stratum] = order[_fill(images.tolist(), sizes.limits(total))]
    return splits


def _fill(sizes: Sequence[int], limits: Sequence[int]) -> list[int]:
    """The part of each cluster: each part takes the clusters that still fit; those that fit into none get the next."""
    parts = [len(limits)] * len(sizes)
    remaining: Sequence[int] = range(len(sizes))
    for part, room in enumerate(limits):
        skipped = []
        for cluster in remaining:
            if sizes[cluster] <= room:
                room -= sizes[cluster]
                parts[cluster] = part
            else:
                skipped.append(cluster)
        remaining = skipped
    return parts


def fold_by_class(clusters: Clusters, folds: int) -> np.ndarray:
    """The fold of each cluster, int16: equal numbers of images of each class, and in all, as far as clusters permit.

    A cluster counts for the class of its first image.
    """
    result = np.empty(len(clusters), np.int16)
    in_all = np.zeros(folds, np.int64)
    for stratum in clusters.order(clusters.labels):
        images = clusters.sizes[stratum]
        loads = np.zeros(folds, np.int64)
        several = np.flatnonzero(images > 1)
        for index in several[np.argsort(-images[several], kind="stable")]:  # large ones first
            fold = np.lexsort((in_all + loads, loads))[0]
            result[stratum[index]] = fold
            loads[fold] += images[index]
        single = stratum[images == 1]
        added = _level(loads, in_all, len(single))
        result[single] = np.repeat(np.arange(folds), added)
        in_all += loads + added
    return result


def _level(loads: np.ndarray, in_all: np.ndarray, more: int) -> np.ndarray:
    """How many of `more` images each fold gets for equal loads; those left over go to the smallest folds."""
    ordered = np.sort(loads)
    needed = ordered * np.arange(1, len(loads) + 1) - np.cumsum(
        ordered
    )  # to fill the smaller ones up to each one
    filled = int(np.searchsorted(needed, more, side="right"))
    level = (more + int(ordered[:filled].sum())) // filled
    added = np.maximum(level - loads, 0)
    lowest = np.flatnonzero(loads <= level)
    smallest = lowest[np.argsort((in_all + loads + added)[lowest], kind="stable")]
    added[smallest[: more - int(added.sum())]] += 1
    return added
