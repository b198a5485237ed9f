"""What the folders of a dataset hold: images, other files, other folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from runner.data.columns import Paths
from runner.data.files import FolderFiles
from runner.data.listing import FileList
from runner.utils.image_paths import SUFFIXES, is_image

Parts: TypeAlias = tuple[str, ...]
"""The names on the way to a folder."""
PROBED = 3
"""Files of a folder that are opened if none has an image's name."""


@dataclass
class Child:
    """A folder at the level where classes or splits are looked for."""

    has_images: bool = False
    """Directly in it."""
    has_nested_images: bool = False
    """In folders below it."""
    has_files: bool = False
    """Of any kind, at any depth."""

    @property
    def holds_images(self) -> bool:
        return self.has_images or self.has_nested_images


class Folders:
    """The folders of a dataset, and what they hold."""

    def __init__(self, found: FileList) -> None:
        self.found = found
        self.parts: list[Parts] = [tuple(name.split("/")) if name else () for name in found.folders]
        count = len(self.parts)
        self.named_as_images = _named_as_images(found.paths)
        """Of each file."""
        self.files = np.bincount(found.folder_of, minlength=count)
        self.images = np.bincount(found.folder_of[self.named_as_images], minlength=count) > 0
        """Whether a folder holds images itself."""
        self._open_some()

    def _open_some(self) -> None:
        """Look into the first files of folders in which none is named as an image."""
        rows = np.flatnonzero(~self.images[self.found.folder_of])
        rows = rows[np.argsort(self.found.folder_of[rows], kind="stable")]
        folders, starts, counts = np.unique(self.found.folder_of[rows], return_index=True, return_counts=True)
        for folder, start, count in zip(folders, starts, counts, strict=True):
            first = rows[start : start + min(count, PROBED)]
            self.images[folder] = any(is_image_file(self.found, index) for index in first)

    def children(self, prefix: Parts) -> dict[str, Child]:
        """The folders in a folder, by name."""
        depth = len(prefix)
        children: dict[str, Child] = {}
        for index, parts in enumerate(self.parts):
            if len(parts) <= depth or parts[:depth] != prefix:
                continue
            child = children.setdefault(parts[depth], Child())
            child.has_files |= bool(self.files[index])
            if self.images[index]:
                child.has_images |= len(parts) == depth + 1
                child.has_nested_images |= len(parts) > depth + 1
        return dict(sorted(children.items()))


def _named_as_images(paths: Paths) -> np.ndarray:
    """Whether each path ends as an image's does."""
    import pyarrow.compute as pc

    suffixes = "|".join(re.escape(suffix) for suffix in sorted(SUFFIXES))
    matches = pc.match_substring_regex(paths.array, f"(?i)(?:{suffixes})$")
    return np.asarray(matches.to_numpy(zero_copy_only=False), bool)


def is_image_file(found: FileList, index: int) -> bool:
    """Whether a file is an image by its name or, in a folder, by its content."""
    path = found.paths[index]
    if isinstance(found.files, FolderFiles):
        return is_image(found.files.root / path)
    return Path(path).suffix.lower() in SUFFIXES
