"""Image files by what a person names: files, folders, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from runner.errors import UserError

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "avif",
        "bmp",
        "gif",
        "jfif",
        "jpe",
        "jpeg",
        "jpg",
        "pgm",
        "png",
        "pnm",
        "ppm",
        "tif",
        "tiff",
        "webp",
    )
)
"""Names that files in a folder go by; a file that is named itself may be called anything."""


def expand(words: Sequence[str]) -> list[Path]:
    """The files that words name, in their order, each once; a folder stands for the images in it and beneath.

    Raises `UserError` for a word that names nothing, and a folder or pattern without images.
    """
    found: dict[Path, None] = {}
    for word in words:
        found.update(dict.fromkeys(_named(word)))
    return list(found)


def _named(word: str) -> list[Path]:
    path = given_path(word)
    if word and os.path.isdir(path):  # which is False, too, for a name that no file can have
        if not (inside := _inside(path)):
            raise UserError(f"The folder {path} holds no images ({', '.join(sorted(SUFFIXES))}).")
        return inside
    if word and os.path.exists(path):
        return [path]
    if not glob.has_magic(word):
        raise UserError(
            f"There is no {shown(word) or 'image without a name'}; give an image, a folder or a pattern."
        )
    matches = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
    files = [file for each in matches for file in (_inside(each) if each.is_dir() else [each])]
    if not files:
        raise UserError(f"The pattern {shown(word)!r} matches no image.")
    return files


def _inside(folder: Path) -> list[Path]:
    return [
        each
        for each in sorted(folder.rglob("*"))
        if each.suffix.lower() in SUFFIXES and not _hidden(each.relative_to(folder)) and each.is_file()
    ]


def given_path(word: str) -> Path:
    """The path that a person gives; ~ is the home folder, where there is such a user."""
    try:
        return Path(word).expanduser()
    except RuntimeError:
        return Path(word)


def shown(path: str) -> str:
    """A file's name on one line, whatever it holds."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in path)


def _hidden(path: Path) -> bool:
    """Whether a path leads through a name with a dot in front: what systems leave beside one's files."""
    return any(part.startswith(".") for part in path.parts)
