"""Uncompressed copies of compressed tar files, in the cache folder: nothing in the middle of gzip can be read alone."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from runner.data.archives.index import cached_path, file_stamp, remove_older
from runner.utils.atomic_files import atomic_write, free_bytes
from runner.utils.console import Terminal, format_bytes
from runner.utils.errors import UserError

CHUNK = 16 << 20
RESERVE = 1 << 30
"""Bytes that stay free in the cache folder."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 100
"""An archive that becomes so large, and so many times its compressed size, does not hold images."""


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return pa.input_stream(str(path), "zstd")


OPENERS: dict[re.Pattern[bytes], Callable[[Path], Any]] = {
    re.compile(rb"\x1f\x8b\x08"): gzip.open,
    re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"): bz2.open,
    re.compile(rb"\xfd7zXZ\0"): lzma.open,
    re.compile(rb"\x28\xb5\x2f\xfd"): _open_zstd,
}
"""What opens a compressed file, by how it begins. A tar file begins with the name of a member."""


def opener_of(path: Path) -> Callable[[Path], Any] | None:
    """What opens a compressed file; None for another one. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        start = file.read(16)
    return next((opener for pattern, opener in OPENERS.items() if pattern.match(start)), None)


def plain_tar(path: Path, cache: Path, terminal: Terminal) -> Path:
    """The uncompressed copy of a compressed file in the cache folder. It is made if missing; one of an earlier state of
    the file is removed.

    Raises `UserError` if the file is damaged, or if it does not fit.
    """
    from filelock import FileLock

    copy = cached_path(cache, path, file_stamp(path), ".tar")
    copy.parent.mkdir(parents=True, exist_ok=True)
    place = copy.name.partition("-")[0]
    with FileLock(copy.parent / f".{place}.lock"):
        if copy.exists():
            return copy
        for unfinished in copy.parent.glob(f".{place}-*.partial"):
            unfinished.unlink(missing_ok=True)
        terminal.line(f"Writing an uncompressed copy of {path} into {copy.parent} …")
        remove_older(copy)
        with atomic_write(copy) as temporary:
            _expand(path, temporary)
    return copy


def _expand(path: Path, target: Path) -> None:
    import pyarrow as pa

    opener = opener_of(path)
    assert opener is not None  # noqa: S101 (for types: it is called for a compressed file)
    size = path.stat().st_size
    written = 0
    try:
        with opener(path) as source, target.open("wb") as file:
            _check_space(path, target, size)
            while block := source.read(CHUNK):
                written += len(block)
                if written > BOMB_BYTES and written > BOMB_RATIO * size:
                    raise UserError(
                        f"The archive {path} expands to more than {BOMB_RATIO} times its size; it holds no images."
                    )
                _check_space(path, target, len(block))
                file.write(block)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"The archive {path} is damaged or not complete ({error}); fetch or pack it again."
        ) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"The archive {path} is damaged ({error}); fetch or pack it again.") from None


def _check_space(path: Path, target: Path, needed: int) -> None:
    free = free_bytes(target)
    if free < RESERVE + needed:
        raise UserError(
            f"There is not enough space in {target.parent} for the uncompressed copy of {path}"
            f" ({format_bytes(free)} free); pack it as .tar, or name another folder with --cache."
        )
