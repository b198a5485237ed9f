"""Image files given by file, folder or glob pattern.

Links to files are followed. Links to folders are followed only if they are named themselves, not inside a named
folder or below `**`: they could lead anywhere.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.utils.errors import UserError
from runner.utils.text import counted, named, printable

SUFFIXES = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Suffixes of image files, which need not be opened to know what they are."""
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Files and folders that desktops create, in small letters."""


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix or else by its content: training and prediction take the same files."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        return False
    from PIL import Image, ImageFile

    from runner.portable.metadata import JPEG, PNG

    try:
        with path.open("rb") as file:
            if file.read(8).startswith((JPEG, PNG)):  # perhaps with metadata that Pillow refuses
                return True
            with Image.open(file) as image:
                return not isinstance(image, ImageFile.StubImageFile) and image.format != "MPEG"
    except OSError:
        return False
    except Exception:  # Pillow's plugins raise almost anything on images that they refuse
        return True


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden, or one that desktops create in folders."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def find_images(arguments: Sequence[str], warn: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The image files that arguments name, in their order and without repetition.

    A folder stands for all images in it and below. `warn` is called with a sentence about what else is there.

    Raises `UserError` for a name without a file, and for a folder or pattern without images.
    """
    found = _Found()
    images: dict[Path, None] = {}
    for argument in arguments:
        images.update(dict.fromkeys(_images_named(argument, found)))
    if found.others:
        warn(
            f"passed over: {counted(len(found.others), 'file')} that Pillow cannot read ({named(found.others)})"
        )
    if found.links:
        warn(
            f"not followed: {counted(len(found.links), 'linked folder')} ({named(found.links)}); name them"
            " to include them"
        )
    return list(images)


@dataclass
class _Found:
    """What folders hold besides images."""

    others: dict[str, None] = field(default_factory=dict)
    links: dict[str, None] = field(default_factory=dict)


def _images_named(argument: str, found: _Found) -> list[Path]:
    path = expand_user(argument)
    if argument and os.path.isdir(path):  # unlike Path.is_dir, False for names that no file can have
        if not (images := _images_below(path, found)):
            links = f" ({named(found.links)} are links, which are not followed)" if found.links else ""
            raise UserError(f"The folder {path} holds no images that Pillow can read{links}.")
        return images
    if argument and os.path.exists(path):
        return [path]
    if not glob.has_magic(argument):
        raise UserError(
            f"There is no {printable(argument) or 'image without a name'}; give an image, a folder or a pattern."
        )
    matches = [Path(match) for match in sorted(_matches(path))]
    files = [
        file for match in matches for file in (_images_below(match, found) if match.is_dir() else [match])
    ]
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


def _images_below(folder: Path, found: _Found) -> list[Path]:
    images = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_system_file(name)]
        paths = [Path(parent, name) for name in files if not is_system_file(name)]
        found.links.update((str(path), None) for name in folders if (path := Path(parent, name)).is_symlink())
        for path in paths:
            if is_image(path) and path.is_file():
                images.append(path)
            else:
                found.others[str(path)] = None
    return sorted(images)


def expand_user(argument: str) -> Path:
    """The path with ~ replaced by the home folder; unchanged if there is no such user."""
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        return Path(argument)


def _is_hidden(path: Path) -> bool:
    """Whether a part of the path begins with a dot, like files that systems leave beside the user's."""
    return any(part.startswith(".") for part in path.parts)
