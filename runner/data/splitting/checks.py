"""Refuses images that cannot be split as wanted, and says what is special about a split."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.remarks import groups_with_several
from runner.data.splitting.clusters import Clusters, SplitInput
from runner.data.splitting.stratify import TEST, TRAIN, VAL
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, named, printable

MOST_NAMED = 10
"""Classes that a message names."""
UNEVEN = 0.02
"""A split whose share of the images differs by more from the wanted one is mentioned."""
WORDS = {TRAIN: "training", VAL: "validation", TEST: "test"}


def check_groups(images: SplitInput, fold: int | None) -> None:
    """Raises `UserError` if images of one group are given for different splits. `fold`: the split that a fold is."""
    if images.groups is None or images.given is None:
        return
    given = np.where(images.given == fold, TRAIN, images.given) if fold is not None else images.given
    rows = np.flatnonzero((images.groups >= 0) & (given != NO_SPLIT))
    rows = rows[np.lexsort((given[rows], images.groups[rows]))]
    groups, splits = images.groups[rows], given[rows]
    divided = np.flatnonzero((groups[1:] == groups[:-1]) & (splits[1:] != splits[:-1]))
    if len(divided):
        pairs = [
            " and ".join(f"{images.paths[row]} ({SPLITS[given[row]]})" for row in rows[place : place + 2])
            for place in divided[:3].tolist()
        ]
        number = len(np.unique(groups[divided]))
        raise UserError(
            f"{counted(number, 'group')} {'is' if number == 1 else 'are'} in more than one split that the data give:"
            f" {printable('; '.join(pairs))}; correct the groups or the splits, or leave out split.group."
        )


def check_kept_together(images: SplitInput, splits: np.ndarray) -> None:
    """Raises `UserError` if given splits leave no place for an image: its group is in one, identical images in another.

    Args:
        images: The images.
        splits: Their splits.
    """
    if images.groups is None or images.given is None:
        return
    used = np.flatnonzero(splits != NO_SPLIT)
    for column, what in ((images.contents, "identical"), (images.groups, "of one group")):
        rows = used[column[used] >= 0]
        for members in groups_with_several(column[rows], splits[rows]):
            given = images.given[rows[members]]
            if (given != NO_SPLIT).all():
                continue  # a leak, which is reported as such
            row, other = rows[members][np.unique(splits[rows[members]], return_index=True)[1][:2]]
            raise UserError(
                f"Images cannot be kept together as the given splits, the groups and identical images demand:"
                f" {printable(images.paths[row])} must be in {SPLITS[splits[row]]} and"
                f" {printable(images.paths[other])} in {SPLITS[splits[other]]}, but they are {what}; correct the groups"
                " or the splits, or leave out split.group."
            )


def check_folds(clusters: Clusters, classes: tuple[str, ...], folds: int, by_group: bool) -> None:
    """Raises `UserError` if a class has fewer clusters than there are folds."""
    numbers = np.bincount(clusters.counts.indices, minlength=len(classes))
    small = np.flatnonzero((numbers > 0) & (numbers < folds))
    if len(small):
        smallest = small[numbers[small].argmin()]
        has_several = bool((clusters.sizes > 1).any())
        noun = "group" if by_group and has_several else "different image" if has_several else "image"
        more = f"; {len(small):,} classes have too few" if len(small) > 1 else ""
        raise UserError(
            f"split.folds={folds} needs {folds} {noun}s of each class to divide, but class {classes[smallest]!r} has"
            f" {numbers[smallest]}{more}; use fewer folds, add images or remove the class."
        )


def check_classes(
    images: SplitInput, splits: np.ndarray, required: Collection[int], free: np.ndarray, ids: np.ndarray
) -> None:
    """Raises `UserError` unless there are two classes and each is in the splits in which it must be.

    Args:
        images: The images.
        splits: Their splits.
        required: Splits in which every class must be.
        free: Indices of the images that were divided.
        ids: The cluster of each image.
    """
    labels = np.unique(images.labels)
    counts = split_counts(images, splits)
    divided = np.bincount(images.labels[free], minlength=len(images.classes))
    untrained = labels[(counts[labels, TRAIN] == 0) & (divided[labels] == 0)]
    if len(untrained):
        guesses = [_similar_class(images.classes, counts, label) for label in untrained[:MOST_NAMED].tolist()]
        guesses += [""] * (len(untrained) - len(guesses))
        names = [
            repr(images.classes[at]) + guess for at, guess in zip(untrained.tolist(), guesses, strict=True)
        ]
        plural = len(names) > 1
        raise UserError(
            f"The data have no training images for {'classes' if plural else 'class'} {named(names, MOST_NAMED)}, only"
            f" {_words(np.flatnonzero(counts[untrained].sum(axis=0)))} images;"
            f" {'write a class alike in all splits, ' * any(guesses)}add some, or remove"
            f" {'these classes' if plural else 'the class'}."
        )
    missing = {
        int(label): [part for part in (TRAIN, VAL, TEST) if part in required and not counts[label, part]]
        for label in labels[(counts[labels][:, sorted(required)] == 0).any(axis=1)]
    }
    if missing:
        _refuse_small(images, missing, free, ids)
    if len(labels) < 2:
        alone = images.classes[labels[0]] if len(labels) else "none"
        raise UserError(f"There is only one class ({alone}); at least two are needed.")


def _similar_class(classes: Sequence[str], counts: np.ndarray, untrained: int) -> str:
    """` (did you mean 'x'?)` with the class that a class without training images may be, written differently.

    Of names that differ in more than case only those count whose splits are not those of the untrained class.
    """
    trained = np.flatnonzero(counts[:, TRAIN] > 0)
    name = classes[untrained]
    for label in trained.tolist():
        if classes[label].casefold() == name.casefold():
            return f" (did you mean {classes[label]!r}?)"
    apart = trained[(counts[trained][:, counts[untrained] > 0] == 0).all(axis=1)]
    return did_you_mean(name, [classes[label] for label in apart.tolist()])


def _refuse_small(
    images: SplitInput, missing: dict[int, list[int]], free: np.ndarray, ids: np.ndarray
) -> None:
    """Raises `UserError` that names classes and the splits that get no image of them."""
    problems, by_group = [], False
    for label, parts in list(missing.items())[:MOST_NAMED]:
        rows = free[images.labels[free] == label]
        groups = len(np.unique(ids[rows]))
        where = ""
        if groups < len(rows) and (images.groups is not None or images.similar is not None):
            by_group = True
            where = (
                f" in {groups} groups" if groups > 1 else f" in one group (that of {images.paths[rows[0]]})"
            )
        empty = f"{' and '.join(SPLITS[part] for part in parts)} get{'s' * (len(parts) == 1)} none"
        number = f"{len(rows)} image{'s' * (len(rows) != 1)}{printable(where)}, too few for its splits"
        if not len(rows):
            number = "only images that belong to images with a given split"
        problems.append(f"Class {images.classes[label]!r} has {number} ({empty})")
    more = f"; {len(missing) - MOST_NAMED} more classes are too small" if len(missing) > MOST_NAMED else ""
    raise UserError(
        f"{'; '.join(problems)}{more}; add images{' of other groups' * by_group}, change split.*"
        f"{' or data.near_duplicates' * (images.similar is not None)}, or remove"
        f" {'the class' if len(missing) == 1 else 'these classes'}."
    )


def split_remarks(images: SplitInput, split: SplitConfig, splits: np.ndarray) -> Iterator[str]:
    """What is special about a split: each one a sentence without its end.

    Args:
        images: The images.
        split: The settings.
        splits: What `assign_splits` gave for them.
    """
    if images.given is None:
        yield from _uneven_remark(images, split, splits)
        if split.val == "rest":
            yield from _lacking_remark(images, split_counts(images, splits), VAL)
        return
    counts = split_counts(images, splits)
    has = {part: bool((images.given == part).any()) for part in (TRAIN, VAL, TEST)}
    for part in (VAL, TEST):
        if has[part]:
            yield from _lacking_remark(images, counts, part)
        elif split.folds is None:
            number = int((splits == part).sum())
            yield (
                f"the data have no {WORDS[part]} split: {counted(number, 'image')} of the others"
                f" {'is' if number == 1 else 'are'} used for it"
            )
    if split.folds is not None and has[TEST] and split.fold_as == "test":
        yield (
            "the folds are validation splits (as with split.fold_as=val), not test splits: the data say which images"
            " are for test, the same for all folds"
        )
    if split.folds is not None and has[VAL] and (has[TEST] or split.fold_as == "val"):
        yield (
            "the folds divide the training and validation images together: the validation images that the data give"
            " are in all folds"
        )


def _lacking_remark(images: SplitInput, counts: np.ndarray, part: int) -> Iterator[str]:
    """Classes without an image in a split."""
    labels = np.unique(images.labels)
    lacking = [images.classes[row] for row in labels if not counts[row, part]]
    if lacking:
        yield (
            f"no {WORDS[part]} images for {len(lacking):,} of {len(labels):,} classes ({named(lacking)}): its scores do"
            " not tell about them"
        )


def _uneven_remark(images: SplitInput, split: SplitConfig, splits: np.ndarray) -> Iterator[str]:
    """Groups that make sizes of splits differ from the wanted ones."""
    is_grouped = images.groups is not None or images.similar is not None
    if not is_grouped or split.by != "fraction" or split.folds is not None:
        return
    shares = np.bincount(splits, minlength=len(SPLITS)) / len(splits)
    wanted = split.sizes
    if any(abs(share - size) > UNEVEN for share, size in zip(shares, wanted, strict=True)):
        sizes = ", ".join(
            f"{name} {share:.0%} instead of {size:.0%}"
            for name, share, size in zip(SPLITS, shares, wanted, strict=True)
        )
        yield f"groups make the splits uneven: {sizes} of the images"


def split_counts(images: SplitInput, splits: np.ndarray) -> np.ndarray:
    """The number of images of each class in each split: classes × 3."""
    used = splits != NO_SPLIT
    cells = images.labels[used].astype(np.int64) * len(SPLITS) + splits[used]
    return np.bincount(cells, minlength=len(images.classes) * len(SPLITS)).reshape(-1, len(SPLITS))


def _words(parts: np.ndarray) -> str:
    return " and ".join(WORDS[int(part)] for part in parts)
