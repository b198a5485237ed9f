"""Walk an image folder, decode every file once, and remember the outcome."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from runner.data.datasets import Source
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.cpu import cores
from runner.utils.errors import UserError
from runner.utils.hashing import digest, digest_bytes
from runner.utils.image_paths import shown

LITTER = frozenset({"Thumbs.db", "desktop.ini"})
"""Files that desktops leave in folders; hidden files are passed over too."""
SCAN_VERSION = 2
"""Part of the cache's name: raise it when decoding, the digest or the form of the memory changes."""
LONGEST = 300
"""Characters of Pillow's reason why a file is no image."""

Stamp = tuple[int, int, int, int]
"""Size in bytes, modification and change time in ns, inode: a file with the same stamp was not rewritten."""


@dataclass(frozen=True)
class ImageFile:
    """A file of a class folder. `path` is relative to the root, with slashes; `fault` says why it is no image."""

    path: str
    label: str
    size: int
    digest: str
    fault: str | None = None


def scan(source: Source, cache: Path, follow_links: bool, terminal: Terminal) -> list[ImageFile]:
    """Every file in the class folders, sorted by path, decoded to see whether it is a whole image.

    What was found is kept in `cache`; a later scan decodes only what has changed since.

    Raises `UserError` where there are no class folders, or a folder that cannot be read.
    """
    found = sorted(_walk(source, follow_links))
    memory = cache / "scans" / f"{digest(SCAN_VERSION, str(source.root.resolve()))}.json"
    known = _recall(memory)
    stamps = {path: _stamp(source.root / path) for path in found}
    fresh = [path for path in found if path not in known or known[path][0] != stamps[path]]
    if fresh:
        try:
            for path, outcome in _verify(source.root, fresh, terminal):
                known[path] = (stamps[path], *outcome)
        finally:  # an interrupted scan goes on where it was
            write_text(
                memory, sealed({path: known[path] for path in found if path in known and known[path][1]})
            )
    return [
        ImageFile(path, path.split("/", 1)[0], known[path][0][0], known[path][1], known[path][2])
        for path in found
    ]


def _walk(source: Source, follow_links: bool) -> Iterator[str]:
    """Relative paths of the files in the class folders."""
    root = source.root
    classes = [
        each for each in _entries(root) if _is_folder(each, follow_links) and each.name not in source.without
    ]
    if not classes:
        raise UserError(f"{root} holds no class folders; it must hold a folder of images for each class.")
    for label in classes:
        seen = {os.path.realpath(root), os.path.realpath(label.path)}
        yield from _files(label, label.name, follow_links, seen)


def _files(folder: os.DirEntry[str], name: str, follow_links: bool, seen: set[str]) -> Iterator[str]:
    for each in _entries(folder.path):
        path = f"{name}/{each.name}"
        if _is_folder(each, follow_links):
            if each.is_symlink():
                real = os.path.realpath(each.path)
                if real in seen:
                    continue  # a link that leads back
                seen = seen | {real}
            yield from _files(each, path, follow_links, seen)
        elif each.name not in LITTER and _is_file(each, follow_links):
            yield path


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [each for each in entries if not each.name.startswith(".")]
    except PermissionError:
        raise UserError(f"The folder {folder} cannot be read; change its mode or leave it out.") from None


def _is_folder(entry: os.DirEntry[str], follow_links: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_links)
    except OSError:  # a link that leads to itself
        return False


def _is_file(entry: os.DirEntry[str], follow_links: bool) -> bool:
    try:
        return entry.is_file(follow_symlinks=follow_links)
    except OSError:
        return False


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _recall(memory: Path) -> dict[str, tuple[Stamp, str, str | None]]:
    try:
        kept = json.loads(memory.read_text(encoding="utf-8", errors="surrogateescape"))
        rows = kept["files"]
        if kept["digest"] != digest(rows):
            return {}
        return {path: _row(*row) for path, row in rows.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}  # never scanned, or a damaged memory: scan again


def sealed(rows: Mapping[str, Any]) -> str:
    """What is remembered: with a digest, since a damaged digest of an image would be taken for the image's."""
    return json.dumps({"digest": digest(rows), "files": rows})


def _row(stamp: Any, content: Any, fault: Any) -> tuple[Stamp, str, str | None]:
    """A file's memory. Raises ValueError where that is not what it is."""
    size, modified, changed, inode = stamp
    whole = all(type(number) is int for number in stamp)
    if not (whole and isinstance(content, str) and isinstance(fault, str | None)):
        raise ValueError(stamp)
    return (size, modified, changed, inode), content, fault


def _verify(root: Path, paths: list[str], terminal: Terminal) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Digest and fault of each file, in the order of their completion. Pillow decodes outside the GIL."""
    threads = cores()
    todo = iter(paths)
    with terminal.progress("verify", len(paths)) as advance, ThreadPoolExecutor(threads) as pool:
        running: dict[Future[tuple[str, str | None]], str] = {}
        try:
            while True:
                for path in islice(todo, 4 * threads - len(running)):
                    running[pool.submit(_decode, root / path)] = path
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)


def _decode(path: Path) -> tuple[str, str | None]:
    """The digest of a file's content and, where Pillow cannot decode it, why."""
    from PIL import UnidentifiedImageError

    from runner.portable.pixels import open_rgb

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
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = shown(" ".join(str(error).split()))[:LONGEST] or type(error).__name__
        return digest_bytes(content), f"cannot be decoded: {reason}"
    return digest_bytes(content), None
