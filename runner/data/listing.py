"""What a dataset holds before its images are read: its files, and the class of each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import numpy as np

from runner.data.columns import Paths
from runner.data.files import FolderFiles, ImageFiles
from runner.utils.errors import UserError
from runner.utils.image_paths import is_system_file
from runner.utils.process_pool import map_in_processes
from runner.utils.processes import cpu_count

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

    def take(self, rows: np.ndarray) -> Listing:
        """The images where a mask is true."""
        columns = {
            name: None if (column := getattr(self, name)) is None else column[rows]
            for name in ("stamps", "labels", "splits", "groups")
        }
        return replace(self, paths=self.paths.take(rows), **columns)  # type: ignore[arg-type]


MANY_FILES = 50_000
"""From then on, the folders of a dataset are listed by several processes."""


def list_folder(root: Path, follow_links: bool, excluded: frozenset[str] = frozenset()) -> FileList:
    """The files below a folder, without those that systems put there.

    Args:
        root: The folder. It may be a link.
        follow_links: Follow links inside it; not those that form a cycle.
        excluded: Names in the folder itself that are passed over.

    Raises `UserError` if a folder cannot be read.
    """
    walk = _walk_folder(_Folder("", str(root), frozenset(), follow_links, excluded), cpu_count())
    return FileList(
        FolderFiles(root),
        Paths.joined(walk.paths),
        tuple(walk.folders),
        np.repeat(np.array(walk.folder_of, np.int32), [len(part) for part in walk.paths]),
        np.concatenate([np.empty((0, STAMP), np.int64), *walk.stamps]),
        tuple(sorted(walk.links)),
        tuple(sorted(walk.broken_links)),
    )


class _Folder(NamedTuple):
    """A folder to list: its path in the dataset ('' is the root) and on disk."""

    name: str
    path: str
    seen: frozenset[str]
    """Real paths of the folders that lead to it."""
    follow_links: bool
    excluded: frozenset[str] = frozenset()


@dataclass
class _Walk:
    """What was found below a folder, in the order of the paths."""

    folders: list[str]
    paths: list[Paths] = field(default_factory=list)
    stamps: list[np.ndarray] = field(default_factory=list)
    """Of each part of `paths`, n × 4."""
    folder_of: list[int] = field(default_factory=list)
    """The folder of each part of `paths`."""
    links: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    count: int = 0

    def add_files(self, entries: Sequence[os.DirEntry[str]], prefix: str) -> None:
        """Add the regular files among some entries of the first folder."""
        paths, stamps = [], array("q")
        for entry in entries:
            try:
                status = entry.stat()
            except FileNotFoundError:  # it has disappeared since its folder was read
                continue
            if S_ISREG(status.st_mode):
                paths.append(prefix + entry.name)
                stamps.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        if paths:
            self.paths.append(Paths.of(paths))
            self.stamps.append(np.array(stamps, np.int64).reshape(-1, STAMP))
            self.folder_of.append(0)
            self.count += len(paths)

    def add(self, inner: _Walk) -> None:
        """Add what was found in a folder within."""
        self.folder_of += [len(self.folders) + index for index in inner.folder_of]
        for name in ("folders", "paths", "stamps", "links", "broken_links"):
            getattr(self, name).extend(getattr(inner, name))
        self.count += inner.count


def _walk_folder(folder: _Folder, processes: int = 1) -> _Walk:
    """List what is below a folder. Sorted as if the names of folders ended with a slash, so that paths are sorted."""
    walk = _Walk([folder.name])
    prefix = f"{folder.name}/" if folder.name else ""
    entries = [
        (f"{entry.name}/" if entry.is_dir() else entry.name, entry)
        for entry in _entries(folder.path)
        if entry.name not in folder.excluded and _is_followed(entry, prefix, folder.follow_links, walk)
    ]
    entries.sort(key=lambda named: named[0])
    inner = {key: _inner_folder(folder, entry, prefix) for key, entry in entries if key.endswith("/")}
    walks = _walk_folders([each for each in inner.values() if each], walk, processes)
    files = []
    for key, entry in entries:
        if not key.endswith("/"):
            files.append(entry)
        elif inner[key]:
            walk.add_files(files, prefix)
            files = []
            walk.add(next(walks))
    walk.add_files(files, prefix)
    return walk


def _walk_folders(folders: Sequence[_Folder], walk: _Walk, processes: int) -> Iterator[_Walk]:
    """List folders one after the other; once `walk` has many files, in several processes."""
    for number, folder in enumerate(folders):
        if processes > 1 and walk.count > MANY_FILES:
            try:
                yield from map_in_processes(_walk_folder, folders[number:], processes)
            except BrokenProcessPool:
                raise UserError(
                    "A process that lists folders has ended unexpectedly, perhaps for lack of memory; start again."
                ) from None
            return
        yield _walk_folder(folder)


def _inner_folder(folder: _Folder, entry: os.DirEntry[str], prefix: str) -> _Folder | None:
    """A folder within; None if it is a link that forms a cycle."""
    seen = folder.seen or frozenset({os.path.realpath(folder.path)})
    if folder.follow_links:
        target = os.path.realpath(entry.path)
        if target in seen:
            return None
        seen |= {target}
    return _Folder(prefix + entry.name, entry.path, seen, folder.follow_links)


def _is_followed(entry: os.DirEntry[str], prefix: str, follow_links: bool, walk: _Walk) -> bool:
    """Whether an entry is to be looked at: it is no link, or one that is followed and leads somewhere."""
    if not entry.is_symlink():
        return True
    is_broken = not os.path.exists(entry.path)
    if is_broken and (follow_links or not prefix):  # perhaps a class on a disk that is not mounted
        walk.broken_links.append(prefix + entry.name)
    elif not follow_links:
        walk.links.append(prefix + entry.name)
    return follow_links and not is_broken


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
