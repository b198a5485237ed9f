"""Assigns each image to a split: a pure function of the settings, the seed, the paths and what belongs together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.data.images import NO_SPLIT
from runner.data.splitting.checks import check_classes, check_folds, check_groups, check_kept_together
from runner.data.splitting.clusters import Clusters, SplitInput, cluster_ids, form_clusters
from runner.data.splitting.protocols import check_filled, check_protocol_applies
from runner.data.splitting.stratify import TEST, TRAIN, VAL, SplitSizes, divide_by_class, fold_by_class
from runner.data.splitting.stratify_groups import divide_groups


def assign_splits(
    images: SplitInput, split: SplitConfig, seed: int, val_seed: int | None = None
) -> np.ndarray:
    """The split of each image: an index into `SPLITS`, or `NO_SPLIT` for an image that is not used; int8.

    What the data give stays. A split that they do not give is taken from the training images. Within each class the
    images are ordered by a hash of (seed, path) and cut: the first part for test, the next for validation, the rest for
    training. So a new image or class changes the split of few others. Images that belong together (exact duplicates,
    groups, near duplicates) go together, and stay with those of them whose split is given.

    With `split.folds` the images are divided into folds, in the same order: one of them is the test split, or the
    validation split beside a fixed test split.

    With `val_seed` the test images are those of `seed`, and the others are divided in the order of `val_seed`.

    Raises `UserError` for a class that has too few images for its splits or folds, for a group in two given splits, for
    groups and identical images that contradict given splits, and if there is only one class.
    """
    plan = _Plan.of(images, split)
    check_groups(images, plan.fold)
    check_protocol_applies(images, split)
    ids = cluster_ids(images.contents, images.groups, images.similar)
    splits = np.full(len(images.labels), NO_SPLIT, np.int8) if images.given is None else images.given.copy()
    rows = _free_rows(images, plan.free, ids, splits)
    if len(rows):
        paths = images.paths if len(rows) == len(splits) else images.paths.take(rows)
        clusters, members = form_clusters(paths, images.labels[rows], ids[rows], seed)
        reordered = clusters
        if val_seed is not None:
            reordered, _ = form_clusters(paths, images.labels[rows], ids[rows], val_seed)
        splits[rows] = _divide(clusters, reordered, images, split, plan)[members]
    check_filled(images, split, splits)
    check_kept_together(images, splits)
    check_classes(images, splits, plan.required, rows, ids)
    return splits


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which images are divided into which splits."""

    free: np.ndarray
    """n booleans: the images to divide."""
    parts: frozenset[int]
    """The splits to divide them into."""
    required: frozenset[int]
    """The splits in which every class must be."""
    fold: int | None = None
    """The split that a fold is."""
    uses_all: bool = False

    @classmethod
    def of(cls, images: SplitInput, split: SplitConfig) -> _Plan:
        given = images.given
        if given is None:
            given = np.full(len(images.labels), NO_SPLIT, np.int8)
        has = [bool((given == part).any()) for part in (TRAIN, VAL, TEST)]
        fold = None
        if split.folds is not None:
            fold = fold_split(images, split)
            has[fold] = False
        missing = frozenset(part for part in (VAL, TEST) if not has[part])
        if has[TRAIN] and not missing:
            every = frozenset({TRAIN, VAL, TEST})
            return cls(given == NO_SPLIT, every, frozenset({TRAIN}))
        free = (given == NO_SPLIT) | (given == TRAIN) | (given == (TRAIN if fold is None else fold))
        parts = missing | {TRAIN}
        return cls(free, parts, SplitSizes(split, parts).required, fold, has[TRAIN])


def fold_split(images: SplitInput, split: SplitConfig) -> int:
    """The split that a fold is, an index into `SPLITS`: val if set so, or if the data say which images are for test."""
    has_test = images.given is not None and bool((images.given == TEST).any())
    return VAL if split.fold_as == "val" or has_test else TEST


def _free_rows(images: SplitInput, free: np.ndarray, ids: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Indices of the images to divide. Those that belong to images with a fixed split get theirs, in place.

    Of these, images that the data give for training stay there. The others go with their duplicates, else with their
    group, else with what is like them.
    """
    if free.all():
        return np.arange(len(splits))
    fixed = ~free & (splits != NO_SPLIT)
    is_bound = np.zeros(int(ids.max(initial=-1)) + 1, bool)
    is_bound[ids[fixed]] = True
    bound = free & is_bound[ids]
    if bound.any():
        splits[bound & (splits != NO_SPLIT)] = TRAIN  # given for validation, which the folds divide again
        for column in (images.contents, images.groups, ids):
            if column is not None:
                _follow(splits, column, bound)
    return np.flatnonzero(free & ~bound)


def _follow(splits: np.ndarray, groups: np.ndarray, bound: np.ndarray) -> None:
    """Give images without a split that of the images in their group; of several, test before val before train."""
    names, numbers = np.unique(groups, return_inverse=True)
    known = (splits != NO_SPLIT) & (groups >= 0)
    split_of = np.full(len(names), NO_SPLIT, np.int8)
    np.maximum.at(split_of, numbers[known], splits[known])
    unknown = bound & (splits == NO_SPLIT) & (groups >= 0)
    splits[unknown] = split_of[numbers[unknown]]


def _divide(
    clusters: Clusters, reordered: Clusters, images: SplitInput, split: SplitConfig, plan: _Plan
) -> np.ndarray:
    """The split of each cluster, int8. `reordered`: the clusters in the order in which all but the test are divided."""
    by_group = images.groups is not None or images.similar is not None
    sizes = SplitSizes(split, plan.parts, plan.uses_all)
    if plan.fold is None or split.folds is None:
        splits = _cut(clusters, sizes, by_group)
        if reordered is not clusters and VAL in plan.parts:
            rest = np.flatnonzero((splits == TRAIN) | (splits == VAL))
            sizes = replace(sizes, parts=plan.parts - {TEST})
            splits[rest] = _cut(reordered.take(rest), sizes, by_group)
        return splits
    splits = np.full(len(clusters), TRAIN, np.int8)
    remaining = np.arange(len(clusters))
    if plan.fold == VAL and TEST in plan.parts:
        # The size of the test split does not depend on that of the folds.
        whole = replace(split, protocol=None, train=split.train + split.sizes[VAL], val=0)
        splits = _cut(clusters, SplitSizes(whole, frozenset({TRAIN, TEST})), by_group)
        remaining = np.flatnonzero(splits == TRAIN)
    free = (reordered if plan.fold == VAL else clusters).take(remaining)
    check_folds(free, images.classes, split.folds, by_group)
    fold = split.fold or 0
    in_fold = _folds(free, split.folds, by_group) == fold
    splits[remaining[in_fold]] = plan.fold
    if plan.fold == TEST and VAL in plan.parts:
        rest = remaining[~in_fold]
        others = reordered.take(rest)
        # Another order than that of the folds, and another for each fold: folds differ in their validation images.
        turn = np.uint64(fold * (2**64 // split.folds))
        others = replace(others, keys=others.keys[:, ::-1] + turn)
        splits[rest] = _cut(others, SplitSizes(split, frozenset({TRAIN, VAL})), by_group)
    return splits


def _cut(clusters: Clusters, sizes: SplitSizes, by_group: bool) -> np.ndarray:
    """The split of each cluster, int8."""
    if not by_group:
        return divide_by_class(clusters, sizes)
    order = np.array(sizes.order, np.int8)
    required = [place for place, part in enumerate(order[:-1].tolist()) if part in sizes.required]
    return order[divide_groups(clusters, sizes.of, required)]


def _folds(clusters: Clusters, folds: int, by_group: bool) -> np.ndarray:
    """The fold of each cluster."""
    if not by_group:
        return fold_by_class(clusters, folds)
    return divide_groups(clusters, lambda total: [total / folds] * folds, range(folds))
