"""Lists the files of an image folder, decodes each once, and caches the result."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from runner.data.datasets import ImageFolder
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest, digest_bytes
from runner.utils.processes import cpu_count
from runner.utils.text import printable
from runner.utils.threads import map_in_threads

IGNORED_FILES = frozenset({"Thumbs.db", "desktop.ini"})
"""Files that desktops create in folders. Hidden files are ignored, too."""
SCAN_VERSION = 2
"""Part of the cache key. Raise it when decoding, the digest or the content of the cache file changes."""
MAX_REASON = 300
"""Characters of Pillow's reason why a file is not an image."""

Stamp: TypeAlias = tuple[int, int, int, int]
"""Size in bytes, modification and change time in ns, inode. A file with the same stamp has not been rewritten."""
Verdict: TypeAlias = tuple[str, str | None]
"""Digest of a file's content (empty if it cannot be read), and why it is not an image; None if it is one."""


@dataclass(frozen=True)
class ImageFile:
    """A file of a class folder.

    Attributes:
        path: Relative to the root, with slashes.
        label: The class.
        size: In bytes.
        digest: Of the content.
        error: Why it is not an image; None if it is one.
    """

    path: str
    label: str
    size: int
    digest: str
    error: str | None = None


def scan_images(folder: ImageFolder, cache: Path, follow_links: bool, terminal: Terminal) -> list[ImageFile]:
    """Every file in the class folders, sorted by path, decoded to check that it is a complete image.

    Results are cached in `cache`: a later scan decodes only files that have changed.

    Raises `UserError` if there are no class folders, or if a folder cannot be read.
    """
    paths = sorted(_list_files(folder, follow_links))
    cache_file = cache / "scans" / f"{digest(SCAN_VERSION, str(folder.root.resolve()))}.json"
    known = _read_cached(cache_file)
    stamps = {path: _stamp(folder.root / path) for path in paths}
    changed = [path for path in paths if path not in known or known[path][0] != stamps[path]]
    if changed:
        try:
            for path, verdict in _verify(folder.root, changed, terminal):
                known[path] = (stamps[path], *verdict)
        finally:  # an interrupted scan can be continued
            readable = {path: known[path] for path in paths if path in known and known[path][1]}
            write_text(cache_file, scan_to_json(readable))
    return [
        ImageFile(path, path.split("/", 1)[0], known[path][0][0], known[path][1], known[path][2])
        for path in paths
    ]


def class_folders(folder: ImageFolder, follow_links: bool) -> list[os.DirEntry[str]]:
    """The folders of the classes. Raises `UserError` if there are none."""
    classes = [
        entry
        for entry in _entries(folder.root, follow_links)
        if os.path.isdir(entry) and entry.name not in folder.excluded
    ]
    if not classes:
        raise UserError(
            f"{folder.root} holds no class folders; it must hold a folder of images for each class."
        )
    return classes


def _list_files(folder: ImageFolder, follow_links: bool) -> Iterator[str]:
    """Relative paths of the files in the class folders."""
    for entry in class_folders(folder, follow_links):
        seen = {os.path.realpath(folder.root), os.path.realpath(entry.path)}
        yield from _files_below(entry, entry.name, follow_links, seen)


def _files_below(folder: os.DirEntry[str], name: str, follow_links: bool, seen: set[str]) -> Iterator[str]:
    for entry in _entries(folder.path, follow_links):
        path = f"{name}/{entry.name}"
        if os.path.isdir(entry):
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if target in seen:
                    continue  # the link forms a cycle
                seen = seen | {target}
            yield from _files_below(entry, path, follow_links, seen)
        elif entry.name not in IGNORED_FILES and os.path.isfile(entry):
            yield path


def _entries(folder: Path | str, follow_links: bool) -> list[os.DirEntry[str]]:
    """What a folder holds, without hidden files, and without links unless they are followed."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except PermissionError:
        raise UserError(f"The folder {folder} cannot be read; change its mode or leave it out.") from None
    return [entry for entry in visible if follow_links or not entry.is_symlink()]


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read_cached(cache_file: Path) -> dict[str, tuple[Stamp, str, str | None]]:
    """Path → stamp and verdict; empty if there was no scan, or if the cache file is damaged."""
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8", errors="surrogateescape"))
        rows = content["files"]
        if content["digest"] != digest(rows):
            return {}
        return {path: _row(*row) for path, row in rows.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}


def scan_to_json(rows: Mapping[str, Any]) -> str:
    """The content of the cache file, with a digest: a damaged image digest could not be detected otherwise."""
    return json.dumps({"digest": digest(rows), "files": rows})


def _row(stamp: Any, content: Any, error: Any) -> tuple[Stamp, str, str | None]:
    """A file's stamp and verdict. Raises ValueError for values of another type."""
    size, modified, changed, inode = stamp
    integers = all(type(number) is int for number in stamp)
    if not (integers and isinstance(content, str) and isinstance(error, str | None)):
        raise ValueError(stamp)
    return (size, modified, changed, inode), content, error


def _verify(root: Path, paths: list[str], terminal: Terminal) -> Iterator[tuple[str, Verdict]]:
    """Path and verdict of each file. Threads suffice: Pillow decodes outside the GIL."""
    threads = cpu_count()
    with terminal.progress("verify", len(paths)) as advance:
        for verified in map_in_threads(lambda path: _verify_file(root / path), paths, threads, 4 * threads):
            yield verified
            advance(1)


def _verify_file(path: Path) -> Verdict:
    from PIL import UnidentifiedImageError

    from runner.portable.images import open_rgb

    try:
        content = path.read_bytes()
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if not content:
        return digest_bytes(content), "is empty"
    try:
        open_rgb(path)
    except UnidentifiedImageError:
        return digest_bytes(content), "is not an image that Pillow knows"
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = printable(" ".join(str(error).split()))[:MAX_REASON] or type(error).__name__
        return digest_bytes(content), f"cannot be decoded: {reason}"
    return digest_bytes(content), None
