"""Images that look nearly alike: copies of another size or quality, slightly cropped or of another brightness.

Two images are near duplicates if their perceptual hashes differ in at most 6 of 64 bits, and their difference hashes
together in at most 12 of 128. On Caltech-101 this finds 96 to 100 % of copies at half the size, at JPEG quality 40,
cropped by 2 %, or 20 % brighter, two thirds of those cropped by 5 %, and hardly any cropped by 10 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.data.columns import Paths
from runner.data.files import ImageFiles
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.splitting.clusters import SplitInput, content_ids
from runner.data.splitting.image_hashes import image_hashes
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import counted, named

MOST_BITS = 6
MOST_DIFFERENCE_BITS = 12
BYTES = 8
"""Of a hash. Two hashes that differ in 6 bits agree in at least 2 of their bytes."""
BYTE_PAIRS = np.array(list(itertools.combinations(range(BYTES), 2)))
NUMBER_OF_PAIR = np.full((BYTES, BYTES), -1)
NUMBER_OF_PAIR[*BYTE_PAIRS.T] = np.arange(len(BYTE_PAIRS))
FLAT = 4.0
"""Standard deviation of gray values (0 to 255) below which an image has nothing to compare."""
MOST_NAMED = 3
MOST_PAIRS = 2_000_000
"""All pairs among the thousands of frames that a fixed camera takes would not fit in memory, and say nothing."""


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Images that look nearly alike."""

    clusters: np.ndarray
    """n numbers of clusters, int32: images that are linked by pairs are in one; -1 for an image without a pair."""
    pairs: np.ndarray
    """m × 2 indices of images, each pair once, sorted. Of identical images only the first is in a pair."""
    flat: int
    """Images of nearly one color, which were not compared."""


def find_near_duplicates(
    files: ImageFiles, paths: Paths, digests: np.ndarray, cache: Path, terminal: Terminal
) -> NearDuplicates:
    """Compare all images: arguments as of `image_hashes`.

    Raises `UserError` if a process that decodes them dies, and if more than `MOST_PAIRS` pairs look alike.
    """
    return compare_hashes(content_ids(digests), image_hashes(files, paths, digests, cache, terminal))


def compare_hashes(contents: np.ndarray, hashes: np.ndarray) -> NearDuplicates:
    """The near duplicates among n images.

    Args:
        contents: n numbers; those of identical images are equal.
        hashes: As `image_hashes` gives them.

    Raises `UserError` if more than `MOST_PAIRS` pairs look alike.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    is_flat = hashes["contrast"] < FLAT
    firsts = np.unique(contents, return_index=True)[1]
    rows = np.sort(firsts[~is_flat[firsts]])
    pairs = rows[_close_pairs(hashes[rows])]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    count = len(is_flat)
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    clusters = connected_components(graph, directed=False)[1].astype(np.int32)
    clusters[np.bincount(clusters, minlength=count)[clusters] == 1] = -1
    return NearDuplicates(clusters, pairs, int(is_flat.sum()))


def _close_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs of indices, m × 2, of hashes that differ in few bits.

    They are looked for among those that agree in two bytes, in time and memory that do not grow with the square of n.
    """
    perceptual = hashes["perceptual"]
    codes = np.ascontiguousarray(perceptual).view(np.uint8).reshape(-1, BYTES)
    found, number_found = [np.empty((0, 2), np.int64)], 0
    for number, (first, second) in enumerate(BYTE_PAIRS.tolist()):
        keys = codes[:, first].astype(np.uint16) << 8 | codes[:, second]
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.arange(len(order))
        for step in range(1, len(order)):  # the images behind each one with the same two bytes
            starts = starts[: np.searchsorted(starts, len(order) - step)]
            starts = starts[ordered[starts] == ordered[starts + step]]
            if not len(starts):
                break
            one, other = order[starts], order[starts + step]
            close = np.bitwise_count(perceptual[one] ^ perceptual[other]) <= MOST_BITS
            one, other = one[close], other[close]
            differences = np.bitwise_count(hashes["across"][one] ^ hashes["across"][other])
            differences += np.bitwise_count(hashes["down"][one] ^ hashes["down"][other])
            close = (differences <= MOST_DIFFERENCE_BITS) & (
                _first_agreement(codes[one] == codes[other]) == number
            )
            found.append(np.stack([one[close], other[close]], 1))
            number_found += len(found[-1])
            if number_found > MOST_PAIRS:
                raise UserError(
                    f"More than {MOST_PAIRS:,} pairs of images look nearly alike, as frames of one camera do; name what"
                    " belongs together by split.group instead, and set data.near_duplicates=off."
                )
    return np.sort(np.concatenate(found), axis=1)


def _first_agreement(agree: np.ndarray) -> np.ndarray:
    """The number of the first pair of bytes in which two hashes agree. `agree`: m × 8, in which bytes they do."""
    first = agree.argmax(axis=1)
    rest = agree.copy()
    rest[np.arange(len(agree)), first] = False
    second = rest.argmax(axis=1)
    return NUMBER_OF_PAIR[first, second]


def near_duplicate_remarks(images: SplitInput, near: NearDuplicates, splits: np.ndarray) -> Iterator[str]:
    """What was found: each one a sentence without its end.

    Args:
        images: The images.
        near: Their near duplicates.
        splits: The split of each image.
    """
    sizes = np.bincount(near.clusters[near.clusters >= 0])
    of_pairs = splits[near.pairs]
    divided = near.pairs[(of_pairs[:, 0] != of_pairs[:, 1]) & (of_pairs != NO_SPLIT).all(axis=1)]
    found = (
        f"{counted(len(near.pairs), 'pair')} of images that look nearly alike, in"
        f" {counted(int((sizes > 0).sum()), 'cluster')} of up to {sizes.max():,} images"
        if len(near.pairs)
        else "none found"
    )
    yield f"near duplicates: {found}"
    if len(divided):
        pairs = [
            f"{images.paths[one]} ~ {images.paths[other]} in {SPLITS[splits[one]]}/{SPLITS[splits[other]]}"
            for one, other in divided[:MOST_NAMED].tolist()
        ]
        more = f" and {len(divided) - MOST_NAMED:,} more" if len(divided) > MOST_NAMED else ""
        good = f"scores on {'it' if len(divided) == 1 else 'them'} are too good"
        can_group = images.similar is None and images.given is None
        yield (
            f"near duplicates in different splits: {counted(len(divided), 'pair')} ({named(pairs)}{more}); {good}"
            f"{'; data.near_duplicates=group keeps each pair in one split' * can_group}"
        )
    if near.flat:
        yield (
            f"not compared: {counted(near.flat, 'image')} of nearly one color, which"
            f" {'has' if near.flat == 1 else 'have'} nothing to tell near duplicates by"
        )
