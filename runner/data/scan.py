"""Decodes each file of an image folder once to check it, and caches the result."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runner.data.datasets import ImageFolder
from runner.data.depth import NAMES as GRAY_TYPES
from runner.data.depth import GrayRange
from runner.data.listing import Listing, Stamp, list_images
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.hashing import digest, digest_bytes
from runner.utils.processes import cpu_count
from runner.utils.text import printable, valid_unicode
from runner.utils.threads import map_in_threads

SCAN_VERSION = 4
"""Part of the cache key. Raise it when decoding, the digest or the content of the cache file changes."""
MAX_REASON = 300
"""Characters of Pillow's reason why a file is not an image."""


class Verdict(NamedTuple):
    """What decoding a file says."""

    digest: str
    """Of its content; empty if it cannot be read."""
    error: str | None = None
    """Why it is no image."""
    gray: GrayRange | None = None
    """The range of gray values, if it has more than 8 bits."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of a class folder.

    Attributes:
        path: Relative to the root, with slashes.
        label: The class: the folder's name, with bytes that are not valid UTF-8 written as `\\xe9`.
        size: In bytes.
        digest: Of the content.
        error: Why it is not an image; None if it is one.
        gray: The range of gray values, if it has more than 8 bits.
    """

    path: str
    label: str
    size: int
    digest: str
    error: str | None = None
    gray: GrayRange | None = None


@dataclass(frozen=True)
class Scan:
    """The files of an image folder, sorted by path, and what else is in it."""

    files: tuple[ImageFile, ...]
    listing: Listing


def scan_images(folder: ImageFolder, cache: Path, follow_links: bool, terminal: Terminal) -> Scan:
    """Every file in the class folders, decoded to check that it is a complete image.

    Images are remembered in `cache`: a later scan decodes only new and changed files, and those that are no images.

    Raises `UserError` as `list_images` does.
    """
    listing = list_images(folder, follow_links)
    cache_file = cache / "scans" / f"{digest(SCAN_VERSION, os.path.realpath(folder.root))}.json"
    known = _read_cached(cache_file)
    changed = [path for path, stamp in listing.files.items() if path not in known or known[path][0] != stamp]
    if changed:
        try:
            for path, verdict in _verify(folder.root, changed, terminal):
                known[path] = (listing.files[path], verdict)
        finally:  # an interrupted scan can be continued
            write_text(
                cache_file, scan_to_text({path: known[path] for path in listing.files if path in known})
            )
    labels = {name: valid_unicode(name) for name in listing.classes}
    files = (
        ImageFile(path, labels[path.split("/", 1)[0]], known[path][0][0], *known[path][1])
        for path in listing.files
    )
    return Scan(tuple(files), listing)


def scan_to_text(rows: Mapping[str, tuple[Stamp, Verdict]]) -> str:
    """The content of the cache file: a digest, to detect damage, and the images.

    Files that are no images are left out: another version of Pillow may read them.
    """
    images = {path: (stamp, verdict) for path, (stamp, verdict) in rows.items() if not verdict.error}
    table = json.dumps([[path, *stamp, image.digest, image.gray] for path, (stamp, image) in images.items()])
    return f"{digest_bytes(table.encode())}\n{table}"


def _read_cached(cache_file: Path) -> dict[str, tuple[Stamp, Verdict]]:
    """Path → stamp and verdict; empty if there was no scan, or if the cache file is damaged."""
    try:
        expected, _, table = cache_file.read_bytes().partition(b"\n")
        if digest_bytes(table).encode() != expected:
            return {}
        return {row[0]: _row(row) for row in json.loads(table)}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return {}


def _row(row: Sequence[Any]) -> tuple[Stamp, Verdict]:
    """A file's stamp and verdict. Raises ValueError for values of another type."""
    path, size, modified, changed, inode, content, gray = row
    stamp = (size, modified, changed, inode)
    texts = isinstance(path, str) and isinstance(content, str)
    if not texts or not all(type(number) is int for number in stamp):
        raise ValueError(row)
    if gray is not None:
        kind, smallest, largest = gray
        if kind not in GRAY_TYPES or not (type(smallest) is type(largest) is float):
            raise ValueError(row)
        gray = (kind, smallest, largest)
    return stamp, Verdict(content, None, gray)


def _verify(root: Path, paths: list[str], terminal: Terminal) -> Iterator[tuple[str, Verdict]]:
    """Path and verdict of each file. Threads suffice: Pillow decodes outside the GIL."""
    threads = cpu_count()
    with terminal.progress("verify", len(paths)) as advance:
        for verified in map_in_threads(lambda path: _verify_file(root / path), paths, threads, 4 * threads):
            yield verified
            advance(1)


def _verify_file(path: Path) -> Verdict:
    from PIL import UnidentifiedImageError

    from runner.portable.images import decode, gray_range, to_rgb

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Verdict("", "disappeared while the images were read")
    except OSError as error:
        return Verdict("", f"cannot be read: {error.strerror}")
    content_digest = digest_bytes(content)
    if not content:
        return Verdict(content_digest, "is empty")
    try:
        image = decode(io.BytesIO(content))
        gray = gray_range(image)
        to_rgb(image)
    except UnidentifiedImageError:
        return Verdict(content_digest, "is not an image that Pillow knows")
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = printable(" ".join(str(error).split()))[:MAX_REASON] or type(error).__name__
        return Verdict(content_digest, f"cannot be decoded: {reason}")
    return Verdict(content_digest, None, gray)
