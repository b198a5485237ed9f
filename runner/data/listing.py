"""What a dataset holds before its images are read: its files, and the class of each."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import numpy as np

from runner.data.columns import Paths
from runner.data.files import FolderFiles, ImageFiles
from runner.utils.errors import UserError
from runner.utils.image_paths import is_system_file

STAMP = 4
"""Numbers of a stamp."""


@dataclass(frozen=True, eq=False)
class FileList:
    """The files of a folder or an archive, sorted by path. Paths are relative to its root, with slashes."""

    files: ImageFiles
    paths: Paths
    folders: tuple[str, ...]
    """All folders, also empty ones, by path; the root is ''."""
    folder_of: np.ndarray
    """The index of each file's folder in `folders`, int32."""
    stamps: np.ndarray
    """n × 4, int64. Size in bytes, modification and change time in ns, inode; an archive has other numbers behind the
    size. A file with the same stamp has not been rewritten."""
    links: tuple[str, ...] = ()
    """Links that are not followed."""
    broken_links: tuple[str, ...] = ()
    """Links that lead nowhere; links inside folders only if links are followed."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a dataset, sorted by path: what is known of them before they are read."""

    files: ImageFiles
    paths: Paths
    stamps: np.ndarray
    """As in `FileList`."""
    classes: tuple[str, ...]
    """Names of the classes, sorted and valid Unicode; also of those without images."""
    labels: np.ndarray
    """The index of each image's class, int32."""
    splits: np.ndarray | None = None
    """The split that the data say for each image, an index into `SPLITS` or `NO_SPLIT`, int8. None: they say none."""
    groups: np.ndarray | None = None
    """The number of each image's group, int32; images of a group stay in one split."""
    layout: str = "class folders"
    """How the images lie, for people."""
    remarks: tuple[str, ...] = ()
    """What the user should know: each one a sentence without its end."""


def list_folder(root: Path, follow_links: bool, excluded: frozenset[str] = frozenset()) -> FileList:
    """The files below a folder, without those that systems put there.

    Args:
        root: The folder. It may be a link.
        follow_links: Follow links inside it; not those that form a cycle.
        excluded: Names in the folder itself that are passed over.

    Raises `UserError` if a folder cannot be read.
    """
    walk = _Walk(follow_links)
    walk.add("", str(root), frozenset({os.path.realpath(root)}), excluded)
    return walk.result(FolderFiles(root))


class _Walk:
    """Lists files in the order of their paths: each folder is sorted as if its folders ended with a slash."""

    def __init__(self, follow_links: bool) -> None:
        self.follow_links = follow_links
        self.names = bytearray()
        self.ends = array("q", [0])
        self.stamps = array("q")
        self.folders: list[str] = []
        self.folder_of = array("i")
        self.links: list[str] = []
        self.broken_links: list[str] = []

    def add(
        self, name: str, folder: str, seen: frozenset[str], excluded: frozenset[str] = frozenset()
    ) -> None:
        """Add what is below a folder. `seen` are the real paths of the folders that lead to it."""
        index = len(self.folders)
        self.folders.append(name)
        prefix = f"{name}/" if name else ""
        entries = [
            (f"{entry.name}/" if entry.is_dir() else entry.name, entry)
            for entry in _entries(folder)
            if entry.name not in excluded and self._is_followed(entry, prefix)
        ]
        entries.sort(key=lambda named: named[0])
        for key, entry in entries:
            if not key.endswith("/"):
                self._add_file(entry, prefix + key, index)
                continue
            inner = seen
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if target in seen:
                    continue  # the link forms a cycle
                inner = seen | {target}
            self.add(prefix + entry.name, entry.path, inner)

    def _is_followed(self, entry: os.DirEntry[str], prefix: str) -> bool:
        """Whether an entry is to be looked at: it is no link, or one that is followed and leads somewhere."""
        if not entry.is_symlink():
            return True
        is_broken = not os.path.exists(entry.path)
        if is_broken and (self.follow_links or not prefix):  # perhaps a class on a disk that is not mounted
            self.broken_links.append(prefix + entry.name)
        elif not self.follow_links:
            self.links.append(prefix + entry.name)
        return self.follow_links and not is_broken

    def _add_file(self, entry: os.DirEntry[str], path: str, folder: int) -> None:
        try:
            status = entry.stat()
        except FileNotFoundError:  # it has disappeared since its folder was read
            return
        if not S_ISREG(status.st_mode):
            return
        self.names += os.fsencode(path)
        self.ends.append(len(self.names))
        self.stamps.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        self.folder_of.append(folder)

    def result(self, files: ImageFiles) -> FileList:
        """What was found."""
        return FileList(
            files,
            Paths.packed(self.names, self.ends),
            tuple(self.folders),
            np.array(self.folder_of, np.int32),
            np.array(self.stamps, np.int64).reshape(-1, STAMP),
            tuple(self.links),
            tuple(self.broken_links),
        )


def _entries(folder: str) -> list[os.DirEntry[str]]:
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
