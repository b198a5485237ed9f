"""Decodes each file of a dataset once to check it, and remembers the result: a killed scan goes on where it was."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from runner.data.depth import GrayRange
from runner.data.file_map import map_files
from runner.data.files import ImageFiles
from runner.data.images import DIGEST_BYTES
from runner.data.layouts.combined import CombinedFiles, separated
from runner.data.listing import Listing
from runner.data.scan_cache import KnownImages, ScanCache
from runner.portable.images import decode, gray_range, to_rgb
from runner.utils.console import Terminal
from runner.utils.hashing import raw_digest
from runner.utils.text import printable

MAX_REASON = 300
"""Characters of Pillow's reason why a file is not an image."""
SAVE_SECONDS = 10.0
"""A killed scan loses no more."""


@dataclass
class Verdicts:
    """What decoding says of n files.

    Attributes:
        digests: Their contents' digests, n × 20 bytes; zeros for a file that cannot be read.
        errors: Why a file is no image, by its index.
        gray: The range of gray values of images that have more than 8 bits, by index.
    """

    digests: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    gray: dict[int, GrayRange] = field(default_factory=dict)

    @classmethod
    def unknown(cls, count: int) -> Verdicts:
        """Of files that were not decoded yet."""
        return cls(np.zeros((count, DIGEST_BYTES), np.uint8))

    def put(self, indices: np.ndarray, others: Verdicts) -> None:
        """Write the verdicts of other files at these indices."""
        self.digests[indices] = others.digests
        self.errors.update((int(indices[index]), reason) for index, reason in others.errors.items())
        self.gray.update((int(indices[index]), gray) for index, gray in others.gray.items())


def scan_images(listing: Listing, cache: Path, terminal: Terminal) -> Verdicts:
    """What decoding says of every listed file.

    Images are remembered in `cache`: a later scan decodes only new and changed files, and those that are no images:
    another version of Pillow may read them.

    Raises `UserError` if a process that decodes dies.
    """
    if isinstance(listing.files, CombinedFiles):
        verdicts = Verdicts.unknown(len(listing.paths))
        for rows, part in separated(listing):  # each place is remembered by itself
            verdicts.put(rows, scan_images(part, cache, terminal))
        return verdicts
    scan_cache = ScanCache(cache, listing.files)
    known = scan_cache.read()
    where = known.find(listing.paths, listing.stamps)
    verdicts = Verdicts.unknown(len(listing.paths))
    old = np.flatnonzero(where >= 0)
    verdicts.digests[old] = known.digests[where[old]]
    if known.gray:
        row_of = np.full(len(known), -1)
        row_of[where[old]] = old
        verdicts.gray.update((int(row_of[at]), gray) for at, gray in known.gray.items() if row_of[at] >= 0)
    new = np.flatnonzero(where < 0)
    if len(new):
        _verify_all(listing, new, verdicts, scan_cache, terminal)
    if len(new) > len(verdicts.errors) or scan_cache.has_parts:
        images = np.ones(len(listing.paths), bool)
        images[list(verdicts.errors)] = False
        remembered = _remembered(listing, verdicts, np.flatnonzero(images))
        scan_cache.replace(remembered, known.others(listing.paths))
    return verdicts


def _verify_all(
    listing: Listing, indices: np.ndarray, verdicts: Verdicts, cache: ScanCache, terminal: Terminal
) -> None:
    """Decode the files at these indices into `verdicts`. What was decoded is saved now and then, and at an error."""
    saved = done = 0
    last = time.monotonic()

    def save() -> None:
        nonlocal saved, last
        images = np.array([row for row in indices[saved:done] if row not in verdicts.errors], np.int64)
        if len(images):
            cache.add(_remembered(listing, verdicts, images))
        saved, last = done, time.monotonic()

    try:
        with terminal.progress("verify", len(indices)) as advance:
            for part in map_files(verify_files, listing.files, listing.paths.take(indices), "decode"):
                count = len(part.digests)
                verdicts.put(indices[done : done + count], part)
                done += count
                advance(count)
                if time.monotonic() - last > SAVE_SECONDS:
                    save()
    except BaseException:
        save()
        raise


def _remembered(listing: Listing, verdicts: Verdicts, rows: np.ndarray) -> KnownImages:
    gray = (
        {number: verdicts.gray[row] for number, row in enumerate(rows.tolist()) if row in verdicts.gray}
        if verdicts.gray
        else {}
    )
    return KnownImages(listing.paths.take(rows), listing.stamps[rows], verdicts.digests[rows], gray)


def verify_files(files: ImageFiles, paths: list[str]) -> Verdicts:
    """Read and decode some files."""
    errors: dict[int, str] = {}
    grays: dict[int, GrayRange] = {}
    digests = [bytes(DIGEST_BYTES)] * len(paths)
    for index, path in enumerate(paths):
        try:
            content = files.read(path)
        except FileNotFoundError:
            errors[index] = "disappeared while the images were read"
            continue
        except OSError as error:
            errors[index] = f"cannot be read: {error.strerror or error}"
            continue
        digests[index] = raw_digest(content)
        reason, gray = _decode(content)
        if reason:
            errors[index] = reason
        if gray:
            grays[index] = gray
    packed = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
    return Verdicts(packed, errors, grays)


def _decode(content: bytes) -> tuple[str, GrayRange | None]:
    """Why a file's content is no image, empty if it is one; and the range of its deep gray values."""
    if not content:
        return "is empty", None
    try:
        image = decode(io.BytesIO(content))
        gray = gray_range(image)
        if image.mode not in ("RGB", "L"):  # these two convert always
            to_rgb(image)
    except UnidentifiedImageError:
        return "is not an image that Pillow knows", None
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files
        reason = printable(" ".join(str(error).split()))[:MAX_REASON] or type(error).__name__
        return f"cannot be decoded: {reason}", None
    return "", gray
