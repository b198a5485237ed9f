"""Image files by what a person names: files, folders, patterns.

A link to a file stands for the file, since pictures are only looked at; what a link to a folder holds is taken where
the link itself is named, not where it lies in a named folder or beneath `**`: a folder's links may lead anywhere.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from runner.utils.errors import UserError

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
    matches = [Path(each) for each in sorted(_matching(path))]
    files = [file for each in matches for file in (_inside(each) if each.is_dir() else [each])]
    if not files:
        raise UserError(f"The pattern {shown(word)!r} matches no image.")
    return files


def _matching(pattern: Path) -> list[str]:
    """The files and folders that a pattern matches; `**` goes into no linked folders, which may lead in circles."""
    if "**" not in pattern.parts:
        return glob.glob(str(pattern))
    place = pattern.parts.index("**")
    starts = glob.glob(str(Path(*pattern.parts[:place]))) if place else ["."]
    rest = "/".join(pattern.parts[place:])
    found = ((Path(start), each) for start in starts for each in Path(start).glob(rest))
    return [
        str(each)
        for start, each in found
        if not _hidden(each.relative_to(start)) and not _through_link(start, each)
    ]


def _through_link(start: Path, path: Path) -> bool:
    """Whether a path is, or leads through, a linked folder behind `start`."""
    inner = path.relative_to(start)
    folders = [start / each for each in inner.parents if each.parts]
    return any(each.is_symlink() for each in folders) or (path.is_symlink() and path.is_dir())


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
