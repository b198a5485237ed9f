"""The same image in several splits that the data give: then scores are too good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from runner.data.images import NO_SPLIT, SPLITS
from runner.data.remarks import as_equation, groups_with_several
from runner.data.splitting.clusters import SplitInput
from runner.utils.errors import UserError
from runner.utils.text import counted, named

MOST_NAMED = 3
"""Images that a message names."""


def leak_remarks(images: SplitInput, leaks: Literal["stop", "report"]) -> Iterator[str]:
    """A remark on images that the data give for more than one split, as identical files.

    Raises `UserError` instead if `leaks` is "stop".
    """
    found = find_leaks(images)
    if not found:
        return
    given = images.given if images.given is not None else np.empty(0)
    pairs = [
        f"{as_equation(images.paths, rows)} in {'/'.join(SPLITS[split] for split in np.unique(given[rows]))}"
        for rows in (_one_per_split(rows, given) for rows in found[:MOST_NAMED])
    ]
    more = f" and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
    what = f"{counted(len(found), 'image')} {'is' if len(found) == 1 else 'are'} in more than one given split"
    where = f"{named(pairs)}{more}"
    if leaks == "stop":
        raise UserError(
            f"{what} ({where}); leave each in one split, or set data.leaks=report to go on: scores will be too good."
        )
    yield f"leaks: {what} ({where}); scores on {'it' if len(found) == 1 else 'them'} are too good"


def find_leaks(images: SplitInput) -> list[np.ndarray]:
    """Indices of identical images in different given splits: an array for each image, without those of no split."""
    if images.given is None:
        return []
    given = np.flatnonzero(images.given != NO_SPLIT)
    found = groups_with_several(images.contents[given], images.given[given])
    return [given[indices] for indices in found]


def _one_per_split(rows: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The first of some images in each split."""
    return rows[np.unique(given[rows], return_index=True)[1]]
