"""Images for tests of splits: paths and classes, without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runner.data.columns import Paths
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.splitting.clusters import SplitInput
from runner.utils.hashing import digest_bytes


def split_input(
    paths: Sequence[str],
    contents: Sequence[str] | None = None,
    *,
    given: Sequence[str | None] | None = None,
    groups: Sequence[int] | None = None,
    similar: Sequence[int] | None = None,
) -> SplitInput:
    """Images whose class is their folder's name; content may be the same text. `paths` are sorted."""
    assert list(paths) == sorted(paths)
    names = [path.split("/")[-2] for path in paths]
    classes = tuple(sorted(set(names)))
    texts = contents if contents is not None else paths
    digests = b"".join(bytes.fromhex(digest_bytes(text.encode(errors="surrogateescape"))) for text in texts)
    return SplitInput(
        Paths.of(paths),
        classes,
        np.array([classes.index(name) for name in names], np.int32),
        np.frombuffer(digests, np.uint8).reshape(-1, 20),
        None
        if given is None
        else np.array([NO_SPLIT if name is None else SPLITS.index(name) for name in given], np.int8),
        None if groups is None else np.array(groups, np.int32),
        None if similar is None else np.array(similar, np.int32),
    )


def images_of(sizes: dict[str, int]) -> list[str]:
    """Paths of distinct images: `{class: count}`."""
    return sorted(f"{label}/{number:03}.png" for label, size in sizes.items() for number in range(size))


def names_of(splits: np.ndarray) -> list[str | None]:
    """The name of each split; None for an image that is not used."""
    return [None if split == NO_SPLIT else SPLITS[split] for split in splits]
