"""Perceptual hashes of images: those of images that look alike differ in few bits. They are computed once."""

from __future__ import annotations

import io
import os
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from runner.data.columns import Paths
from runner.data.file_map import map_files
from runner.data.files import ImageFiles
from runner.data.images import DIGEST_BYTES
from runner.data.splitting.clusters import content_ids
from runner.utils.atomic_files import atomic_write
from runner.utils.console import Terminal
from runner.utils.hashing import digest, digest_bytes

HASH_VERSION = 1
"""Part of the cache key. Raise it when hashes change."""
SIDE = 32
"""Images are reduced to so many pixels squared: what ImageHash's perceptual hash looks at."""
ROW = np.dtype(
    [
        ("content", f"V{DIGEST_BYTES}"),
        ("perceptual", "<u8"),
        ("across", "<u8"),
        ("down", "<u8"),
        ("contrast", "<f4"),
    ]
)
"""Digest of a file, perceptual hash, hashes of the differences across and down, and the standard deviation of the gray
values (0 to 255); -1 for an image that cannot be decoded any more."""
SAVE_SECONDS = 30.0
"""A killed run loses no more."""
MOST_OTHERS = 2_000_000
"""Hashes that are remembered beside those of the images at hand: another table may name them."""


def image_hashes(
    files: ImageFiles, paths: Paths, digests: np.ndarray, cache: Path, terminal: Terminal
) -> np.ndarray:
    """The hashes of n images: rows of `ROW`.

    Args:
        files: Reads the images.
        paths: Their paths.
        digests: n × 20 bytes of content digests: images with the same content are read once.
        cache: The folder of the cache.
        terminal: Shows the progress.

    Raises `UserError` if a process that decodes dies.
    """
    versions = [HASH_VERSION, version("pillow"), version("imagehash")]
    key = digest(versions, type(files).__name__, os.path.realpath(files.root))
    cache_file = cache / "image_hashes" / key
    contents = content_ids(digests)
    firsts = np.unique(contents, return_index=True)[1]
    hashes = np.zeros(len(firsts), ROW)
    hashes["content"] = np.ascontiguousarray(digests[firsts]).view(f"V{DIGEST_BYTES}")[:, 0]
    known = _read(cache_file)
    is_known, is_taken = _take_known(hashes, known)
    others = known[~is_taken][:MOST_OTHERS]
    missing = np.flatnonzero(~is_known)
    if len(missing):
        done, saved = 0, time.monotonic()
        try:
            with terminal.progress("compare", len(missing)) as advance:
                for part in map_files(hash_images, files, paths.take(firsts[missing]), "compare"):
                    rows = missing[done : done + len(part)]
                    for name in ROW.names[1:]:  # type: ignore[index]
                        hashes[name][rows] = part[name]
                    done += len(part)
                    advance(len(part))
                    if time.monotonic() - saved > SAVE_SECONDS:
                        _write(cache_file, hashes[is_known | _mask(missing[:done], len(hashes))], others)
                        saved = time.monotonic()
        finally:
            _write(cache_file, hashes[is_known | _mask(missing[:done], len(hashes))], others)
    return hashes[contents]


def _mask(indices: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[indices] = True
    return mask


def _take_known(hashes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy the hashes that are known. Returns where they are, and where they were, as masks."""
    both = np.concatenate([known["content"], hashes["content"]]).view(np.uint8).reshape(-1, DIGEST_BYTES)
    ids = content_ids(both)
    row_of = np.full(len(both), -1)
    row_of[ids[: len(known)]] = np.arange(len(known))
    found = row_of[ids[len(known) :]]
    is_known = found >= 0
    hashes[is_known] = known[found[is_known]]
    return is_known, _mask(found[is_known], len(known))


def hash_images(files: ImageFiles, paths: list[str]) -> np.ndarray:
    """The hashes of some images, without their digests."""
    import imagehash

    rows = np.zeros(len(paths), ROW)
    rows["contrast"] = -1
    for row, path in zip(rows, paths, strict=True):
        with suppress(Exception):  # the file has changed since it was checked; Pillow raises almost anything
            gray = _reduced(files.read(path))
            hashes = imagehash.phash(gray), imagehash.dhash(gray), imagehash.dhash_vertical(gray)
            for name, value in zip(("perceptual", "across", "down"), hashes, strict=True):
                row[name] = np.packbits(value.hash).view("<u8")[0]
            row["contrast"] = np.asarray(gray).std()
    return rows


def _reduced(content: bytes):  # type: ignore[no-untyped-def]  # (Pillow is imported when it is needed)
    """An image in 32 × 32 gray values."""
    from PIL import Image

    from runner.portable.images import open_rgb, upright_rgb

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # decodes a large photograph in a fraction of the time
            image.load()
            rgb = upright_rgb(image)
    except Exception:  # no JPEG file, or one with damaged metadata
        rgb = open_rgb(io.BytesIO(content))
    return rgb.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _read(cache_file: Path) -> np.ndarray:
    """The hashes in a cache file; none if there is no such file, or if it is damaged."""
    with suppress(OSError, ValueError):
        content = cache_file.read_bytes()
        if digest_bytes(content[2 * DIGEST_BYTES :]).encode() == content[: 2 * DIGEST_BYTES]:
            return np.frombuffer(content[2 * DIGEST_BYTES :], ROW)
    return np.empty(0, ROW)


def _write(cache_file: Path, hashes: np.ndarray, others: np.ndarray) -> None:
    """Remember hashes, and others that were known: a digest, to detect damage, and the rows."""
    content = hashes[hashes["contrast"] >= 0].tobytes() + others.tobytes()
    with atomic_write(cache_file) as temporary:
        temporary.write_bytes(digest_bytes(content).encode() + content)
