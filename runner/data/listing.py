"""Lists the files of an image folder, and what in it is not used: links, and images outside the class folders."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from runner.data.datasets import ImageFolder
from runner.utils.errors import UserError
from runner.utils.image_paths import is_image, is_system_file
from runner.utils.text import named, valid_unicode

Stamp: TypeAlias = tuple[int, int, int, int]
"""Size in bytes, modification and change time in ns, inode. A file with the same stamp has not been rewritten."""


@dataclass
class Listing:
    """What an image folder holds. Paths are relative to its root, with slashes."""

    root: Path
    follow_links: bool
    files: dict[str, Stamp] = field(default_factory=dict)
    """The files of the class folders, sorted by path."""
    classes: list[str] = field(default_factory=list)
    """Names of the class folders, sorted."""
    links: list[str] = field(default_factory=list)
    """Links in class folders, and to class folders, that are not followed."""
    broken_links: list[str] = field(default_factory=list)
    """Links that lead nowhere: beside the class folders, and in them if links are followed."""
    loose: list[str] = field(default_factory=list)
    """Images beside the class folders."""

    def add_folder(self, folder: str, name: str, seen: frozenset[str]) -> None:
        """Add the files below a folder. `seen` are the real paths of the folders that lead to it."""
        for entry in _entries(folder):
            path = f"{name}/{entry.name}"
            if not self._is_followed(entry, path):
                continue
            if entry.is_dir():
                inner = seen
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    if target in seen:
                        continue  # the link forms a cycle
                    inner = seen | {target}
                self.add_folder(entry.path, path, inner)
            elif entry.is_file():
                self._add_file(entry, path)

    def _is_followed(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether an entry is to be looked at: it is no link, or one that is followed and leads somewhere."""
        if not entry.is_symlink():
            return True
        if not self.follow_links:
            self.links.append(path)
        elif not os.path.exists(entry.path):
            self.broken_links.append(path)
        else:
            return True
        return False

    def _add_file(self, entry: os.DirEntry[str], path: str) -> None:
        with suppress(FileNotFoundError):  # it has disappeared since its folder was read
            self.files[path] = _stamp(entry)


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    status = entry.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def list_images(folder: ImageFolder, follow_links: bool) -> Listing:
    """The files of the class folders.

    Raises `UserError` if there are no class folders, if two have the same name in Unicode, or if a folder cannot be
    read.
    """
    listing = Listing(folder.root, follow_links)
    real_root = os.path.realpath(folder.root)
    for entry in sorted(_entries(folder.root), key=lambda entry: entry.name):
        if entry.name in folder.excluded:
            continue
        if entry.is_symlink() and not os.path.exists(
            entry.path
        ):  # perhaps a class on a disk that is not mounted
            listing.broken_links.append(entry.name)
        elif os.path.isdir(entry.path):
            if listing._is_followed(entry, entry.name):
                listing.classes.append(entry.name)
                listing.add_folder(
                    entry.path, entry.name, frozenset({real_root, os.path.realpath(entry.path)})
                )
        elif is_image(Path(entry.path)):
            listing.loose.append(entry.name)
    listing.files = dict(sorted(listing.files.items()))
    _check_names(listing)
    return listing


def _check_names(listing: Listing) -> None:
    """Raises `UserError` if there is no class folder, or if two have the same name in Unicode."""
    if not listing.classes:
        linked = ""
        if listing.links:
            linked = (
                f" but links ({named(listing.links)}), which are not followed; set data.follow_links=true, or data.root"
                " to another folder"
            )
        elif listing.broken_links:
            linked = f" but links to nowhere ({named(listing.broken_links)}); fetch what they lead to"
        raise UserError(
            f"{listing.root} holds no class folders{linked or '; it must hold a folder of images for each class'}."
        )
    names = [valid_unicode(name) for name in listing.classes]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"Two class folders in {listing.root} are called {named(doubled)} once bytes that are not UTF-8 are written"
            r" as \x…; rename one."
        )


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What a folder holds, without the files that systems put there; nothing if it has disappeared."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_system_file(entry.name)]
    except PermissionError:
        raise UserError(f"The folder {folder} cannot be read; change its mode or leave it out.") from None
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); check its disk.") from None
