"""Refuses images that cannot be split as a protocol demands."""

from __future__ import annotations

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.data.splitting.checks import split_counts
from runner.data.splitting.clusters import SplitInput
from runner.data.splitting.stratify import TEST, TRAIN, VAL
from runner.utils.errors import UserError


def check_protocol_applies(images: SplitInput, split: SplitConfig) -> None:
    """Raises `UserError` for a protocol if the data give splits: it would have to ignore them."""
    if split.protocol is not None and images.given is not None:
        raise UserError(
            f"split.protocol={split.protocol} decides which images are for training, validation and test, but the data"
            " decide that too; leave out split.protocol, or give the images without splits."
        )


def check_filled(images: SplitInput, split: SplitConfig, splits: np.ndarray) -> None:
    """Raises `UserError` if a class has fewer images than a protocol demands, or split.val=rest leaves none at all.

    Args:
        images: The images.
        split: The settings.
        splits: The splits of the images.
    """
    counts = split_counts(images, splits)
    if split.protocol is not None and split.by == "count":
        labels = np.unique(images.labels)
        short = labels[(counts[labels, TRAIN] != split.train) | (counts[labels, TEST] == 0)]
        if len(short):
            _refuse(images, split, short, counts)
    if split.val == "rest" and not (splits == VAL).any():
        raise UserError(
            f"split.val=rest leaves no validation images: no class has more than the {split.train:g} images for"
            f" training and {split.test:g} for the test; give sizes that leave some (--split.by count --split.train …)"
            f"{', without split.protocol' * (split.protocol is not None)}."
        )


def _refuse(images: SplitInput, split: SplitConfig, short: np.ndarray, counts: np.ndarray) -> None:
    """Raises `UserError` that names the smallest of the classes that are too small."""
    label = short[counts[short].sum(axis=1).argmin()]
    in_train, _, in_test = counts[label].tolist()
    grouped = images.groups is not None or images.similar is not None
    others = f" (and {len(short) - 1:,} more classes)" if len(short) > 1 else ""
    raise UserError(
        f"split.protocol={split.protocol} needs {split.train:g} training images of each class and at least one for the"
        f" test, but class {images.classes[label]!r} has {in_train} and {in_test}{others}; add images, remove"
        f" {'these classes' if others else 'the class'},"
        f"{' leave out split.group or data.near_duplicates,' * grouped} or set sizes without split.protocol."
    )
