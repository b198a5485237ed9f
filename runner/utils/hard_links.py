"""Files with the same content, stored once: each name is a hard link to the same data on disk.

Every name is a complete file of its own: any of them may be deleted, copied or read alone. The data goes when the last
name goes. Where the file system has no hard links the files are plain copies.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runner.utils.atomic_files import sync_folder, sync_tree


def write_once(
    path: Path, shared: Path, write: Callable[[Path], None], is_intact: Callable[[Path], bool]
) -> None:
    """Give a file the content of `shared`, which is written if it is missing or damaged.

    Args:
        path: The file; it is replaced.
        shared: Named by its content, in a folder of such files, and read-only: who writes in place to one of the
            names would change all. Files with the same suffix that have no other name are removed from the folder.
        write: Writes the content to a path.
        is_intact: Whether a file has that content.

    Raises OSError as `write` does.
    """
    try:
        if not (shared.exists() and is_intact(shared)):
            _remove_unused(shared.parent, shared.suffix)
            write(shared)
        with suppress(PermissionError):  # another user has written it
            shared.chmod(shared.stat().st_mode & 0o444)
        _link(shared, path)
    except OSError:  # no hard links here, or another process has just removed the file
        write(path)


def link_instead_of_copy(source: Path, target: Path) -> bool:
    """Make `target` a link to a file that has several names already. Returns whether it did.

    It does not if the file has one name only, or if the two places cannot share data.
    """
    try:
        if source.stat().st_nlink == 1:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)
    except OSError:
        return False
    return True


def linked_files(folder: Path) -> list[Path]:
    """The files in a folder that have several names; none if there is no such folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink > 1]


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder and flush it to disk. Files that have several names get one more instead of a copy."""

    def copy(file: str, name: str) -> None:
        if not link_instead_of_copy(Path(file), Path(name)):
            Path(name).unlink(missing_ok=True)  # it may be a link: writing to it would change others
            shutil.copyfile(file, name)

    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)
    sync_tree(target)


def _link(source: Path, path: Path) -> None:
    """Replace `path` by a link to `source`."""
    if path.exists() and path.samefile(source):
        return
    temporary = path.with_name(f".{path.name}.link")
    temporary.unlink(missing_ok=True)  # of a process that was killed here
    try:
        os.link(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _remove_unused(folder: Path, suffix: str) -> None:
    """Remove the files with a suffix that have no other name: all runs that had them are deleted."""
    for file in folder.glob(f"[!.]*{suffix}"):
        with suppress(FileNotFoundError):  # another process has just removed it
            status = file.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                file.unlink()
