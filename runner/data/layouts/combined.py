"""Test images that lie in another place than the others (data.test)."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runner.data.columns import Paths
from runner.data.files import ImageFiles
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.listing import Listing
from runner.utils.errors import UserError

PREFIX = "data.test/"
"""How the paths of the test images begin."""
TEST = SPLITS.index("test")


@dataclass(frozen=True)
class CombinedFiles:
    """The files of two places; paths in the second one begin with `PREFIX`."""

    main: ImageFiles
    test: ImageFiles

    @property
    def root(self) -> Path:
        return self.main.root

    def read(self, path: str) -> bytes:
        if path.startswith(PREFIX):
            return self.test.read(path.removeprefix(PREFIX))
        return self.main.read(path)

    def shown(self, path: str) -> str:
        if path.startswith(PREFIX):
            return self.test.shown(path.removeprefix(PREFIX))
        return self.main.shown(path)


def with_test_images(main: Listing, test: Listing) -> Listing:
    """The images of `main`, and those of `test` in the test split.

    Raises `UserError` if `main` has test images itself, if `test` has others, and if an image lies in both places.
    """
    _check_places(main, test)
    if main.splits is not None and (main.splits == TEST).any():
        raise UserError(
            f"{main.files.root} has test images itself ({main.layout}); leave out data.test, or move them elsewhere."
        )
    if test.splits is not None and (test.splits != TEST).any():
        raise UserError(
            f"data.test={test.files.root} has more than test images ({test.layout}); set it to the folder of the test"
            " images."
        )
    place = bisect_left(main.paths, PREFIX)
    if place < len(main.paths) and main.paths[place].startswith(PREFIX):
        raise UserError(
            f"{main.files.root} holds a folder {PREFIX[:-1]}, as the test images are called; rename it."
        )
    classes = tuple(sorted({*main.classes, *test.classes}))
    number = {name: index for index, name in enumerate(classes)}

    def merged(column: np.ndarray, inserted: np.ndarray) -> np.ndarray:
        return np.concatenate([column[:place], inserted, column[place:]])

    def labels(listing: Listing) -> np.ndarray:
        return np.array([number[name] for name in listing.classes], np.int32)[listing.labels]

    given = np.full(len(main.paths), NO_SPLIT, np.int8) if main.splits is None else main.splits
    return Listing(
        CombinedFiles(main.files, test.files),
        Paths.joined([main.paths[:place], _prefixed(test.paths), main.paths[place:]]),
        merged(main.stamps, test.stamps),
        classes,
        merged(labels(main), labels(test)),
        merged(given, np.full(len(test.paths), TEST, np.int8)),
        None if main.groups is None else merged(main.groups, _groups(main.groups, test)),
        f"{main.layout}; test images from {test.files.root} ({test.layout})",
        (*main.remarks, *(f"test images: {remark}" for remark in test.remarks)),
    )


def separated(listing: Listing) -> Iterator[tuple[np.ndarray, Listing]]:
    """The rows of each place in a combined listing, and its images by their paths in that place."""
    import pyarrow.compute as pc

    files = listing.files
    assert isinstance(files, CombinedFiles)  # noqa: S101 (for types)
    is_test = np.zeros(len(listing.paths), bool)
    is_test[bisect_left(listing.paths, PREFIX) : bisect_left(listing.paths, PREFIX[:-1] + "0")] = True
    yield np.flatnonzero(~is_test), replace(listing.take(~is_test), files=files.main)
    test = listing.take(is_test)
    paths = pc.replace_substring(test.paths.array, PREFIX, "", max_replacements=1)
    yield np.flatnonzero(is_test), replace(test, files=files.test, paths=Paths(paths))


def _groups(main: np.ndarray, test: Listing) -> np.ndarray:
    """Numbers of the groups of test images, none of them one of the other images; -1 for none."""
    if test.groups is None:
        return np.full(len(test.paths), -1, np.int32)
    return np.where(test.groups < 0, -1, test.groups + main.max(initial=-1) + 1).astype(np.int32)


def _prefixed(paths: Paths) -> Paths:
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [pa.scalar(part, pa.large_binary()) for part in (PREFIX.encode(), b"")]
    return Paths(pc.binary_join_element_wise(parts[0], paths.array, parts[1]))


def _check_places(main: Listing, test: Listing) -> None:
    """Raises `UserError` if an image of one place lies in the other: it would be counted twice."""
    root, place = main.files.root, test.files.root
    outer, inner = os.path.realpath(root), os.path.realpath(place)
    if outer == inner:
        raise UserError(f"data.root and data.test are the same place, {root}; set data.test to other images.")
    for outside, inside, paths in ((outer, inner, main.paths), (inner, outer, test.paths)):
        if not inside.startswith(start := outside.rstrip("/") + "/"):
            continue
        below = f"{inside.removeprefix(start)}/"
        first = bisect_left(paths, below)
        if first < len(paths) and paths[first].startswith(below):
            raise UserError(
                f"One of {root} and data.test={place} lies in the other, and its images belong to both; move the test"
                " images out of it."
            )
