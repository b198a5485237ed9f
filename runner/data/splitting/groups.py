"""Groups of images that stay in one split: by a regular expression on their paths."""

from __future__ import annotations

import re

import numpy as np

from runner.data.columns import Paths
from runner.utils.errors import UserError

NO_GROUP = -1


def path_groups(paths: Paths, pattern: str) -> tuple[np.ndarray, str]:
    """The number of each image's group, int32; `NO_GROUP` where the pattern does not match. And a remark, or nothing.

    Raises `UserError` if the pattern matches no path.
    """
    search = re.compile(pattern).search
    numbers: dict[str, int] = {}
    groups = np.full(len(paths), NO_GROUP, np.int32)
    for index, path in enumerate(paths):
        if match := search(path):
            name = next((part for part in match.groups() if part is not None), match.group())
            groups[index] = numbers.setdefault(name, len(numbers))
    alone = int((groups == NO_GROUP).sum())
    if not numbers:
        raise UserError(
            f"split.group={pattern!r} is no column of a table and matches no path, as {paths[0]}; correct the pattern."
        )
    if not alone:
        return groups, f"split.group: {len(numbers):,} groups of {len(paths):,} images"
    first = paths[int((groups == NO_GROUP).argmax())]
    return groups, (
        f"split.group={pattern!r} does not match {alone:,} of {len(paths):,} paths, as {first}: these images are in no"
        " group"
    )
