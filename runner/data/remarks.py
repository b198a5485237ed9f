"""What a user should know about images: what makes their labels or scores weak."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runner.data.columns import Paths
from runner.data.splitting.clusters import SplitInput
from runner.utils.text import counted, named, printable

FEW_IMAGES = 10
"""A class with fewer images has at most two or three for validation and test."""


MOST_NAMED, MOST_EQUAL = 5, 3
"""Images that a message names, and paths of each of them."""


def image_remarks(images: SplitInput) -> Iterator[str]:
    """Contradicting labels and small classes: each one a sentence without its end."""
    yield from _conflict_remark(images)
    yield from _class_size_remark(images)


def groups_with_several(groups: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Indices of the members of each group whose members differ in `values`, in the order of their first members."""
    if not len(groups):
        return []
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0])
    ends = np.append(starts[1:], len(order))
    mixed = np.minimum.reduceat(values[order], starts) != np.maximum.reduceat(values[order], starts)
    found = [order[start:end] for start, end in zip(starts[mixed], ends[mixed], strict=True)]
    return sorted(found, key=lambda members: int(members[0]))


def as_equation(paths: Paths, indices: np.ndarray) -> str:
    """`a/1.jpg = b/2.jpg`; of many, the first ones."""
    shown = " = ".join(paths[index] for index in indices[:MOST_EQUAL].tolist())
    return shown if len(indices) <= MOST_EQUAL else f"{shown} = {len(indices) - MOST_EQUAL:,} more"


def _conflict_remark(images: SplitInput) -> Iterator[str]:
    """Identical files in several classes: at most one of their labels is right."""
    conflicting = groups_with_several(images.contents, images.labels)
    if conflicting:
        firsts = [_one_per_class(images, indices) for indices in conflicting[:MOST_NAMED]]
        shown = ", ".join(printable(as_equation(images.paths, indices)) for indices in firsts)
        more = f" and {len(conflicting) - MOST_NAMED:,} more" if len(conflicting) > MOST_NAMED else ""
        yield (
            f"contradicting labels: {counted(len(conflicting), 'image')} in more than one class ({shown}{more}); leave"
            " each in one class"
        )


def _one_per_class(images: SplitInput, indices: np.ndarray) -> np.ndarray:
    """The first of some images in each class, in their order."""
    return indices[np.sort(np.unique(images.labels[indices], return_index=True)[1])]


def _class_size_remark(images: SplitInput) -> Iterator[str]:
    """Classes with so few images that their scores mean little."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    small = np.flatnonzero((counts > 0) & (counts < FEW_IMAGES))
    if len(small):
        ordered = small[np.argsort(counts[small], kind="stable")]
        sizes = named([f"{images.classes[label]}: {counts[label]}" for label in ordered])
        yield (
            f"fewer than {FEW_IMAGES} images in {len(small):,} of {np.count_nonzero(counts):,} classes ({sizes}):"
            " their scores depend on single images"
        )
