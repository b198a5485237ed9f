"""All or nothing on disk: write aside, flush, rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.utils.errors import UserError

_umask = os.umask(0)  # there is no way to read it but to set it, for all threads: once, at import
os.umask(_umask)
MODE = 0o666 & ~_umask
"""The mode that a new file has by default."""


@contextmanager
def replacing(path: Path, mode: int = MODE) -> Iterator[Path]:
    """Yield a path to write to; `path` becomes that file, whole, when the block ends, or stays as it was."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.chmod(mode)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write does not tell where
        raise
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """See that a new name in a folder outlives a loss of power, where the file system can promise it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they outlive a loss of power."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def flush(place: Path) -> None:
    """See that a file, or every file and folder under a folder, outlives a loss of power."""
    for path in (place, *place.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_text(path: Path, text: str, mode: int = MODE) -> None:
    """Replace the file at `path` by `text` (UTF-8; file names that are no UTF-8 survive)."""
    with replacing(path, mode) as aside:
        aside.write_text(text, encoding="utf-8", errors="surrogateescape")


def writable(name: str | Path) -> Path:
    """A folder to write results to, made where there is none. Raises `UserError` where it cannot be written."""
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is not a folder, or lies in a file; name another folder.") from None
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); name another.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"No permission to write in {folder}; change its mode or name another folder.")
    return folder


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds `path`, or would."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
