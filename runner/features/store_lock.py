"""Locks that keep a feature store from being removed while it is used.

Every process that uses a store holds a shared `flock` on a file in it. Who removes a store needs the exclusive one.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.utils.atomic_files import write_text

RECIPE_FILE = "recipe.json"
"""States what computes a store's features. Its modification time is that of the store's last use."""
LOCK_FILE = "in-use"


class UseLock:
    """A shared lock on a store.

    Args:
        folder: Of the store.
        recipe: Content of the recipe file of a new store.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = recipe
        self._descriptor: int | None = None

    def acquire(self, create: bool = False) -> None:
        """Lock the store for as long as this process lives, and update the time of its last use.

        Does nothing if there is no store and `create` is False, or if the store is read-only: nobody can remove it.
        """
        recipe, lock = self.folder / RECIPE_FILE, self.folder / LOCK_FILE
        while not self._is_held():  # the store may be removed while it is opened
            self.release()
            if not recipe.exists():
                if not create:
                    return
                write_text(recipe, self.recipe)
            flags = os.O_RDONLY if lock.exists() else os.O_RDWR | os.O_CREAT
            try:
                self._descriptor = os.open(lock, flags, 0o666)
            except FileNotFoundError:  # removed just now
                continue
            except OSError:  # read-only
                return
            with suppress(OSError):
                os.utime(recipe)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            except OSError:  # a file system without locks
                return

    def release(self) -> None:
        """Allow others to remove the store."""
        if self._descriptor is not None:
            with suppress(OSError):  # processes that decode images hold copies of the descriptor
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_held(self) -> bool:
        """Whether the lock is on the store that exists now, not on one that was removed."""
        if self._descriptor is None:
            return False
        own = os.fstat(self._descriptor)
        try:
            current = (self.folder / LOCK_FILE).stat()
        except OSError:
            return False
        same = (own.st_dev, own.st_ino) == (current.st_dev, current.st_ino)
        return same and (self.folder / RECIPE_FILE).exists()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Within the block, no process uses the store. Raises OSError if one does, or if the store is read-only."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
