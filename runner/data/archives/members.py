"""Lists what archives hold. A member that is not a plain file or folder below the archive's root is refused."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np

from runner.data.archives.index import RAW, Archive, Members
from runner.data.columns import Paths
from runner.utils.errors import UserError
from runner.utils.image_paths import is_system_file
from runner.utils.text import printable

LONG_NAME = 200
"""Characters of a name in messages."""
NUMBERS = ("offset", "stored", "size", "method", "crc", "time")


def refuse(archive: Path, member: str, problem: str, remedy: str) -> NoReturn:
    """Raises the `UserError` about a member: `problem` follows its name."""
    raise UserError(f"The archive {archive} cannot be used: {quoted(member)} {problem}; {remedy}.")


def quoted(name: str) -> str:
    """A member's name for messages."""
    shown = printable(name)
    return f"'{shown if len(shown) <= LONG_NAME else f'{shown[:LONG_NAME]}…'}'"


def plain_path(archive: Path, name: str) -> str | None:
    """A member's path without `.` components; None for one that a system put there.

    Raises `UserError` for a path that could lead out of the archive, on any system.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    problem = None
    if not parts:
        return None
    if name.startswith("/"):
        problem = "is an absolute path"
    elif ".." in parts:
        problem = "leads out of the archive"
    elif re.match("[A-Za-z]:[/\\\\]", name):
        problem = "begins with a drive letter"
    elif "\\" in name:
        problem = "has a backslash"
    elif "\0" in name:
        problem = "has a null byte"
    if problem:
        refuse(archive, name, problem, "pack it again with relative paths and slashes")
    return None if any(map(is_system_file, parts)) else "/".join(parts)


class MemberList:
    """Members of an archive, in its order."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.numbers = array("q")
        self.folders = {""}

    def add_file(
        self, path: str, offset: int, stored: int, size: int, zipped: tuple[int, int, int] = (RAW, -1, 0)
    ) -> None:
        """Add a file. `zipped` are the method, CRC-32 and time of a zip member."""
        self.paths.append(path)
        self.numbers.extend((offset, stored, size, *zipped))

    def repeat_file(self, path: str, row: int) -> None:
        """Add another name of the file that was added as number `row`."""
        self.paths.append(path)
        self.numbers.extend(self.numbers[row * len(NUMBERS) : (row + 1) * len(NUMBERS)])

    def place(self, row: int) -> tuple[int, int]:
        """Offset and size of the file that was added as number `row`."""
        start = row * len(NUMBERS)
        return self.numbers[start], self.numbers[start + 2]

    def add_folder(self, path: str) -> None:
        """Add a folder, perhaps without files."""
        if path:
            self.folders.add(path)
            _add_parents(path, self.folders)

    def columns(self) -> dict[str, np.ndarray]:
        """The numbers of the files, in the order in which they were added."""
        table = np.frombuffer(self.numbers, np.int64).reshape(-1, len(NUMBERS))
        return {name: table[:, column] for column, name in enumerate(NUMBERS)}

    def members(self, archive: Archive, shown: Path) -> Members:
        """The table of the members, with their folders. `shown` is what messages call the archive.

        Raises `UserError` for a path that is there twice.
        """
        for path in self.paths:
            _add_parents(path, self.folders)
        order = sorted(range(len(self.paths)), key=self.paths.__getitem__)
        paths = [self.paths[row] for row in order]
        check_unique(shown, paths)
        for path in paths:
            if path in self.folders:
                refuse(shown, path, "is a file and a folder", "pack it again, with each name once")
        folders = sorted(self.folders, key=lambda folder: f"{folder}/" if folder else "")
        place = {folder: index for index, folder in enumerate(folders)}
        names = np.fromiter((place[path.rpartition("/")[0]] for path in paths), np.int32, len(paths))
        columns = {name: column[np.array(order, np.int64)] for name, column in self.columns().items()}
        columns.update(name=names, archive=np.zeros(len(paths), np.int32))
        return Members((archive,), Paths.of(paths), tuple(folders), columns)


def check_unique(archive: Path, paths: Sequence[str]) -> None:
    """Raises `UserError` for one of these sorted paths that is there twice."""
    for first, second in pairwise(paths):
        if first == second:
            refuse(archive, first, "is in it twice", "pack it again, with each file once")


def _add_parents(path: str, folders: set[str]) -> None:
    parent = path.rpartition("/")[0]
    while parent and parent not in folders:
        folders.add(parent)
        parent = parent.rpartition("/")[0]
