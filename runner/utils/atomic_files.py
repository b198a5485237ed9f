"""Files that are written completely or not at all: write a temporary file, flush it to disk, rename it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.utils.errors import UserError

DEFAULT_MODE = 0o666
"""Permissions of a new file, before the system applies the umask: to read that, one must set it, for all threads."""


@contextmanager
def atomic_write(path: Path, mode: int = DEFAULT_MODE) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces `path` at the end of the block; after an error `path` stays."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    created = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    permissions = stat.S_IMODE(os.fstat(created).st_mode)
    os.close(created)
    try:
        yield temporary
        # Safetensors puts a file of its own in its place, which only the user may read.
        temporary.chmod(permissions)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # errors of `write` name no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, if the file system supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and flush them to disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_tree(root: Path) -> None:
    """Flush a file, or a folder with everything in it, to disk."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_text(path: Path, text: str, mode: int = DEFAULT_MODE) -> None:
    """Replace the file at `path` by `text` (UTF-8; file names that are not valid UTF-8 are preserved)."""
    with atomic_write(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def output_folder(name: str | Path) -> Path:
    """The folder to write results to; it is made if missing. Raises `UserError` if it cannot be written."""
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
    """Free bytes of the file system of `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
