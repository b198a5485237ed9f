"""Files that other hosts change: the file server's clock, what this host remembers of a folder, files that are gone."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

PROBE_SUFFIX = ".now"
"""End of the names of the files by which `server_time` asks for the time. A killed process may leave one."""


def server_time(folder: Path) -> float:
    """The time now by the clock of a folder's file system, in seconds since the epoch. Raises OSError.

    A file is made in the folder for a moment. This also makes a network file system list the folder afresh, instead of
    what it remembers of it.
    """
    probe = folder / f".{secrets.token_hex(8)}{PROBE_SUFFIX}"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        with suppress(OSError):
            probe.unlink()


def modified_at(path: Path) -> float:
    """When a file was modified last. Raises OSError.

    It is opened, since network file systems ask the server only then; `stat` may answer what was true a minute ago.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def is_gone(error: OSError) -> bool:
    """Whether a file was removed, on this host or on another one. Errors of safetensors have no number."""
    is_stale = error.errno == errno.ESTALE or f"(os error {errno.ESTALE})" in str(error)
    return is_stale or isinstance(error, FileNotFoundError)
