"""Image files by what a person names: files, folders, patterns."""

from __future__ import annotations

import glob
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
        path = Path(word).expanduser()
        if path.is_dir():
            inside = [
                each
                for each in sorted(path.rglob("*"))
                if each.suffix.lower() in SUFFIXES and not _hidden(each.relative_to(path)) and each.is_file()
            ]
            if not inside:
                raise UserError(f"The folder {path} holds no images ({', '.join(sorted(SUFFIXES))}).")
        elif path.exists():
            inside = [path]
        elif glob.has_magic(word):
            inside = [
                Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file()
            ]
            if not inside:
                raise UserError(f"The pattern {word!r} matches no file.")
        else:
            raise UserError(f"There is no {word}; give an image, a folder or a pattern.")
        found.update(dict.fromkeys(inside))
    return list(found)


def _hidden(path: Path) -> bool:
    """Whether a path leads through a name with a dot in front: what systems leave beside one's files."""
    return any(part.startswith(".") for part in path.parts)
