"""Files with the same content, stored once: each name is a hard link to the same data on disk.

Every name is a complete file of its own: any of them may be deleted, copied or read alone. The data goes when the last
name goes. Where the file system has no hard links the files are plain copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runner.utils.atomic_files import sync_folder


def write_once(
    path: Path, shared: Path, write: Callable[[Path], None], is_intact: Callable[[Path], bool]
) -> None:
    """Give a file the content of `shared`, which is written if it is missing or damaged.

    Args:
        path: The file; it is replaced.
        shared: Named by its content, in a folder of such files. Those that have no other name are removed from it.
        write: Writes the content to a path.
        is_intact: Whether a file has that content.

    Raises OSError as `write` does.
    """
    try:
        if not (shared.exists() and is_intact(shared)):
            _remove_unused(shared.parent)
            write(shared)
        _link(shared, path)
    except OSError:  # no hard links here, or another process has just removed the file
        write(path)


def link_copies(source: Path, copy: Path) -> None:
    """Make the copies of linked files links, too.

    Args:
        source: A file or a folder. Its files with one name only are passed over.
        copy: Its copy, on the same file system; elsewhere it stays a copy.
    """
    for file in [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]:
        with suppress(OSError):
            target = copy / file.relative_to(source) if source.is_dir() else copy
            if file.stat().st_nlink > 1 and file.stat().st_size == target.stat().st_size:
                _link(file, target)


def _link(source: Path, path: Path) -> None:
    """Replace `path` by a link to `source`."""
    if path.exists() and path.samefile(source):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.link")
    try:
        os.link(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _remove_unused(folder: Path) -> None:
    """Remove the files that have no other name: all runs that had them are deleted."""
    for file in folder.glob("[!.]*"):
        if file.stat().st_nlink == 1:
            file.unlink(missing_ok=True)
