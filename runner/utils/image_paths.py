"""Image files given by file, folder or glob pattern.

Links to files are followed. Links to folders are followed only if they are named themselves, not inside a named
folder or below `**`: they could lead anywhere.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from runner.utils.errors import UserError
from runner.utils.text import printable

SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Suffixes of image files in folders. A file that is named itself may have any name."""


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files that arguments name, in their order and without repetition.

    A folder stands for all images in it and below. Raises `UserError` for a name without a file, and for a folder or
    pattern without images.
    """
    images: dict[Path, None] = {}
    for argument in arguments:
        images.update(dict.fromkeys(_images_named(argument)))
    return list(images)


def _images_named(argument: str) -> list[Path]:
    path = expand_user(argument)
    if argument and os.path.isdir(path):  # unlike Path.is_dir, False for names that no file can have
        if not (images := _images_below(path)):
            raise UserError(f"The folder {path} holds no images ({', '.join(sorted(SUFFIXES))}).")
        return images
    if argument and os.path.exists(path):
        return [path]
    if not glob.has_magic(argument):
        raise UserError(
            f"There is no {printable(argument) or 'image without a name'}; give an image, a folder or a pattern."
        )
    matches = [Path(match) for match in sorted(_matches(path))]
    files = [file for match in matches for file in (_images_below(match) if match.is_dir() else [match])]
    if not files:
        raise UserError(f"The pattern {printable(argument)!r} matches no image.")
    return files


def _matches(pattern: Path) -> list[str]:
    """Files and folders that a pattern matches. `**` does not follow linked folders, which could form a cycle."""
    if "**" not in pattern.parts:
        return glob.glob(str(pattern))
    index = pattern.parts.index("**")
    roots = glob.glob(str(Path(*pattern.parts[:index]))) if index else ["."]
    rest = "/".join(pattern.parts[index:])
    return [
        str(path)
        for root in map(Path, roots)
        for path in root.glob(rest)
        if not _is_hidden(path.relative_to(root)) and not _is_behind_link(root, path)
    ]


def _is_behind_link(root: Path, path: Path) -> bool:
    """Whether `path` is a linked folder below `root`, or lies in one."""
    folders = [root / parent for parent in path.relative_to(root).parents if parent.parts]
    return any(folder.is_symlink() for folder in folders) or (path.is_symlink() and path.is_dir())


def _images_below(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not _is_hidden(path.relative_to(folder)) and path.is_file()
    ]


def expand_user(argument: str) -> Path:
    """The path with ~ replaced by the home folder; unchanged if there is no such user."""
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        return Path(argument)


def _is_hidden(path: Path) -> bool:
    """Whether a part of the path begins with a dot, like files that systems leave beside the user's."""
    return any(part.startswith(".") for part in path.parts)
